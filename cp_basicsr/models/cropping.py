"""A part of each training patch, for stages that take less than a dataset gives."""

from __future__ import annotations

import random

from torch import Tensor

from cp_basicsr.options import OptionError


def random_part(lq: Tensor, gt: Tensor, gt_size: int, chance: random.Random) -> tuple[Tensor, Tensor]:
    """A square of a batch, at the same place in all its patches.

    Args:
        lq: ``[B, C, H, W]`` or ``[B, T, C, H, W]``.
        gt: the same patches, ``scale`` times as high and wide.
        gt_size: side of the part in gt pixels, a multiple of ``scale``.
        chance: where the place comes from.

    Returns:
        ``lq`` and ``gt`` of the part, views.

    Raises:
        OptionError: the patches are smaller.
    """
    height, width = gt.shape[-2:]
    if min(height, width) < gt_size:
        raise OptionError(
            f'gt_size {gt_size} of a stage in train.stages is more than the training patches have, {width} x {height} '
            'pixels; make datasets.train.gt_size larger, or leave the one of the stage out.'
        )
    scale = gt.shape[-1] // lq.shape[-1]
    side = gt_size // scale
    top, left = (chance.randint(0, length - side) for length in lq.shape[-2:])
    return _square(lq, top, left, side), _square(gt, scale * top, scale * left, gt_size)


def _square(images: Tensor, top: int, left: int, side: int) -> Tensor:
    return images[..., top : top + side, left : left + side]
