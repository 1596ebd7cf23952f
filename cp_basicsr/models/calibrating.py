"""Calibration of a network on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from torch import Tensor

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.options import OptionError
from cp_basicsr.routing.choice import DEFAULT_TILE

from .training_options import TrainingOptions

MAX_SIDE = 512  # lq pixels of an image that are looked at; more only takes time


@torch.no_grad()
def calibrate(net: ClassPruningNet, patches: Sequence[Tensor], budget: float | None, tile: int | None) -> None:
    """Fit ``net.calibration``: the price for each budget, by tile and for whole images, and what it was trained for.

    Args:
        net: the network; left in eval mode.
        patches: from :func:`held_out_patches`.
        budget: what the network was trained for, share of the dense MACs; None when no budget was.
        tile: side of a tile in lq pixels, None when only whole images are routed.
    """
    net.eval()
    net.calibration.budget.fill_(float('nan') if budget is None else budget)
    net.calibration.tile.fill_(tile or 0)
    device = next(net.parameters()).device
    scopes: dict[str, int | None] = {'image': None}
    if net.classifier.by_tile and patches[0].dim() == 4:
        scopes['tile'] = tile or DEFAULT_TILE
    for scope, size in scopes.items():
        predictions = [net.predict(patch.to(device), size).double().cpu() for patch in patches]
        rows = torch.cat([prediction.flatten(2).transpose(1, 2).flatten(0, 1) for prediction in predictions])
        net.calibration.fit(scope, rows, net.costs(patches[0].shape[1:]))


def held_out_patches(options: TrainingOptions, opt: Mapping[str, Any], multiple: int) -> list[Tensor]:
    """lq images ``[1, C, H, W]`` (or clips), evenly spread over the dataset of ``train.calibration``.

    Args:
        options: names the dataset.
        opt: the whole option file; without ``train.calibration.dataset`` its training images are used, with a warning.
        multiple: heights and widths are cut to multiples of this.

    Raises:
        OptionError: an image is too small for the network.
    """
    block = options.calibration
    if block is None:
        block = opt['datasets']['train']
        get_root_logger().warning(
            'train.calibration.dataset is not given: budgets are calibrated on training images, and may '
            'be met less well.'
        )
    dataset = build_dataset({'name': 'calibration', 'scale': opt.get('scale', 1), **block, 'phase': 'val'})
    count = min(len(dataset), options.calibration_images)
    patches = []
    for index in range(count):
        lq = dataset[index * len(dataset) // count]['lq'][None]
        height, width = (min(side, MAX_SIDE) // multiple * multiple for side in lq.shape[-2:])
        if not height or not width:
            raise OptionError(
                f'train.calibration.dataset: image {index} is smaller than {multiple} x {multiple} pixels.'
            )
        patches.append(lq[..., :height, :width])
    return patches
