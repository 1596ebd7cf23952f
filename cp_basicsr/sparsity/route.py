"""Routes: which level each prunable layer runs at while a supernet computes.

A route is active within ``with routed(route):`` in the calling thread only (a context variable), so two networks may
run from two threads. It also counts what ran, for the MACs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .placement import Placement, TileGrid, UnplacedLayerError

if TYPE_CHECKING:
    from .layers import PrunableLayer

_ACTIVE: ContextVar[Route | None] = ContextVar('cp_basicsr_route', default=None)


def active_route() -> Route | None:
    """The route of the calling thread; None outside ``routed``, where every layer runs at its densest level."""
    return _ACTIVE.get()


@contextmanager
def routed(route: Route) -> Iterator[Route]:
    """Run the supernets within this block along ``route``."""
    token = _ACTIVE.set(route)
    try:
        yield route
    finally:
        _ACTIVE.reset(token)


class Route(ABC):
    """Runs prunable layers and counts their output positions.

    Attributes:
        positions: for each layer name, the output positions (pixels or tokens) that ran at each level.
    """

    def __init__(self) -> None:
        self.positions: dict[str, list[int]] = {}

    @abstractmethod
    def run(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        """Output of a layer along this route."""

    @abstractmethod
    def levels_of(
        self, layer: PrunableLayer, shape: tuple[int, ...], placement: Placement | None = None
    ) -> tuple[int | Tensor, dict[int, int]]:
        """Levels of a layer's outputs, and how many outputs there are of each.

        Args:
            layer: the layer.
            shape: shape of its output, channels included.
            placement: where the outputs lie, if not where the layer says (its tokens computed as a map, say).

        Returns:
            One level index for all outputs, or integer levels shaped like the output with one channel; and by level
            how many outputs, all channels of a position as one, have it.
        """

    def count(self, layer: PrunableLayer, counts: dict[int, int]) -> None:
        """Note that so many outputs of a layer ran at each level."""
        totals = self.positions.setdefault(layer.layer_name, [0] * len(layer.pattern.levels))
        for level, count in counts.items():
            totals[level] += count


class UniformRoute(Route):
    """Every layer at one level: the subnet.

    Args:
        level: level index, 0 the sparsest, -1 the densest.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def run(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        output = layer.run_level(x, layer.pattern.index(self.level))
        self.count(layer, self.levels_of(layer, tuple(output.shape))[1])
        return output

    def levels_of(
        self, layer: PrunableLayer, shape: tuple[int, ...], placement: Placement | None = None
    ) -> tuple[int, dict[int, int]]:
        level = layer.pattern.index(self.level)
        return level, {level: math.prod(shape) // layer.out_width}


class LevelMapRoute(Route):
    """Each tile at its own level on one full-image feature map; every tile reads its true neighbours.

    The reference meaning: a layer computes every level that the map holds, and each output takes its own tile's.

    Args:
        grid: the level map and the image it lies on.
    """

    def __init__(self, grid: TileGrid) -> None:
        super().__init__()
        # One byte for each pixel: maps of large pictures are made and compared eight times as fast.
        self.grid = replace(grid, levels=grid.levels.to(torch.uint8))
        self.held = [int(level) for level in grid.levels.unique()]
        self._placed: dict[tuple[Placement, tuple[int, ...]], tuple[Tensor, dict[int, int]]] = {}

    def run(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        output = layer.run_level(x, self.held[0])
        levels, counts = self.levels_of(layer, tuple(output.shape))
        for level in self.held[1:]:
            if level in counts:
                output = torch.where(levels == level, layer.run_level(x, level), output)
        self.count(layer, counts)
        return output

    def levels_of(
        self, layer: PrunableLayer, shape: tuple[int, ...], placement: Placement | None = None
    ) -> tuple[Tensor, dict[int, int]]:
        placement = placement or layer.placement
        axis = placement.channel_axis % len(shape)
        key = (placement, shape[:axis] + shape[axis + 1 :])
        if key not in self._placed:
            try:
                levels = placement.levels(self.grid, shape)
            except UnplacedLayerError as error:
                raise UnplacedLayerError(f'{layer.layer_name}: {error}') from None
            counts = torch.bincount(levels.flatten()).tolist()
            self._placed[key] = (levels.unsqueeze(axis), {k: n for k, n in enumerate(counts) if n})
        return self._placed[key]
