"""Batches: padded to what a network needs, and taken apart by level."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def padded(x: Tensor, multiple: int) -> Tensor:
    """``x`` padded below and to the right to heights and widths that are multiples, by reflection where it is large
    enough for that, else by its border; ``[B, C, H, W]`` or ``[B, T, C, H, W]``.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    mode = 'reflect' if bottom < height and right < width else 'replicate'
    flat = x.flatten(0, -4) if x.dim() == 5 else x
    return F.pad(flat, (0, right, 0, bottom), mode=mode).view(*x.shape[:-2], height + bottom, width + right)


def groups_of(levels: Tensor) -> list[tuple[int, Tensor]]:
    """The levels held by ``[B]`` and the rows at each."""
    return [(int(level), (levels == level).nonzero().flatten()) for level in levels.unique()]


def merge_groups(parts: Sequence[tuple[Tensor, Tensor]], batch: int) -> Tensor:
    """Put outputs of groups of rows back into one batch."""
    merged = parts[0][1].new_empty((batch, *parts[0][1].shape[1:]))
    for rows, output in parts:
        merged[rows] = output
    return merged
