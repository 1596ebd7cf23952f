"""Calibration of a network on held-out images."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence

import torch
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from torch import Tensor
from torch.utils.data import Dataset

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.options import OptionError
from cp_basicsr.routing.choice import DEFAULT_TILE

from .training_options import TrainingOptions

MAX_SIDE = 512  # lq pixels of an image that are looked at; more only takes time
RECENT = 64  # training batches kept where nothing is held out


@torch.no_grad()
def calibrate(net: ClassPruningNet, patches: Sequence[Tensor], budget: float | None, tile: int | None) -> None:
    """Fit ``net.calibration``: the price for each budget, by tile and for whole images, and what it was trained for.

    Args:
        net: the network; left in eval mode.
        patches: lq images or batches, from :class:`HeldOutImages` or :class:`RecentBatches`.
        budget: what the network was trained for, share of the dense MACs; None when no budget was.
        tile: side of a tile in lq pixels, None when only whole images are routed.
    """
    net.eval()
    net.calibration.budget.fill_(float('nan') if budget is None else budget)
    net.calibration.tile.fill_((tile or 0) if net.classifier.by_tile else 0)
    device = next(net.parameters()).device
    scopes: dict[str, int | None] = {'image': None}
    if net.classifier.by_tile and patches[0].dim() == 4:
        scopes['tile'] = tile or DEFAULT_TILE
    for scope, size in scopes.items():
        predictions = [net.predict(patch.to(device), size).double().cpu() for patch in patches]
        rows = torch.cat([prediction.flatten(2).transpose(1, 2).flatten(0, 1) for prediction in predictions])
        net.calibration.fit(scope, rows, net.costs(patches[0].shape[1:]))


class HeldOutImages:
    """The images of ``train.calibration.dataset``; the first is read at once, so that a wrong path stops a run early.

    Args:
        options: names the dataset.
        scale: gt pixels for each lq pixel along one side.
        net: heights and widths are cut to what it needs.

    Raises:
        OptionError: the first image is too small for the network, or has other channels.
    """

    def __init__(self, options: TrainingOptions, scale: int, net: ClassPruningNet) -> None:
        self._block = {'name': 'calibration', 'scale': scale, **options.calibration, 'phase': 'val'}
        self._most = options.calibration_images
        self._multiple = net.multiple
        net.check_shape(self._read(build_dataset(self._block), 0).shape)

    @functools.cached_property
    def patches(self) -> list[Tensor]:
        """lq images ``[1, C, H, W]`` (or clips), evenly spread over the dataset.

        Raises:
            OptionError: an image is too small for the network.
        """
        dataset = build_dataset(self._block)
        count = min(len(dataset), self._most)
        return [self._read(dataset, index * len(dataset) // count) for index in range(count)]

    def watch(self, lq: Tensor) -> None:
        """Training batches are not needed."""

    def _read(self, dataset: Dataset, index: int) -> Tensor:
        lq = dataset[index]['lq'][None]
        height, width = (min(side, MAX_SIDE) // self._multiple * self._multiple for side in lq.shape[-2:])
        if not height or not width:
            raise OptionError(
                f'train.calibration.dataset: image {index} is smaller than {self._multiple} x {self._multiple} pixels.'
            )
        return lq[..., :height, :width]


class RecentBatches:
    """The last training batches, where no held-out dataset is given; budgets are met less well."""

    def __init__(self) -> None:
        self._batches: deque[Tensor] = deque(maxlen=RECENT)
        get_root_logger().warning(
            'train.calibration.dataset is not given: budgets are calibrated on training patches and may be met '
            'less well.'
        )

    @property
    def patches(self) -> list[Tensor]:
        """lq batches ``[B, C, H, W]`` (or of clips)."""
        return list(self._batches)

    def watch(self, lq: Tensor) -> None:
        """Keep a training batch."""
        self._batches.append(lq.detach().cpu())
