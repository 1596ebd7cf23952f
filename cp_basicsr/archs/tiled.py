"""Networks restored by cut tiles: where the tiles lie, and what they cost with their overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cp_basicsr.engine.batched_tiles import CutTile, cut_tiles

from .adapters import smallest_side

if TYPE_CHECKING:
    from .class_pruning_arch import ClassPruningNet


def tiles_of(net: ClassPruningNet, shape: Sequence[int], size: int, overlap: int) -> list[CutTile]:
    """The tiles of one input, widened to what the network takes, in raster order.

    Args:
        net: the network.
        shape: of the input; its last two numbers, multiples of ``net.multiple``, count.
        size: lq pixels that a tile owns along each side.
        overlap: lq pixels that it sees beyond them on each side.
    """
    return cut_tiles(*shape[-2:], size, overlap, net.multiple, smallest_side(net.base))


def cut_costs(net: ClassPruningNet, shape: Sequence[int], size: int, overlap: int) -> tuple[Tensor, Tensor]:
    """What the tiles of one input of ``shape`` (without batch axis) cost at their true sizes.

    Args as in :func:`tiles_of`.

    Returns:
        Share of the whole image's dense MACs that all tiles spend at each level, overlap included: float64 ``[L]``, at
        the densest level 1 or more; and the dense MACs of each tile: float64 ``[tiles]``.
    """
    tables = [net.macs((*shape[:-2], *tile.shape)) for tile in tiles_of(net, shape, size, overlap)]
    spent = [sum(table.level(level) for table in tables) for level in range(len(net.levels))]
    dense = [table.dense for table in tables]
    return (
        torch.tensor(spent, dtype=torch.float64) / net.macs(shape).dense,
        torch.tensor(dense, dtype=torch.float64),
    )
