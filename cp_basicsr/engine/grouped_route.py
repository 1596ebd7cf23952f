"""A route for devices without sparse kernels: each layer computes its outputs grouped by level, none of them twice.

The reference path computes every level that a level map holds over the whole image and selects. Here the pixels (with
what the kernel sees around each tile) or tokens of one level are gathered, computed together, and put back: the work is
the dense network's, whatever the map holds.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from cp_basicsr.sparsity import Convolution, LevelMapRoute, NMLinear, Placement, PrunableLayer, Route

from .level_layers import LevelLayers


class GroupedRoute(Route):
    """Runs another route's levels with values that were masked once.

    Args:
        route: says the levels and counts what ran.
        layers: the network's layers at each level.
    """

    def __init__(self, route: Route, layers: LevelLayers) -> None:
        super().__init__()
        self.route = route
        self.positions = route.positions
        self.layers = layers
        self._members: dict[Hashable, dict[int, tuple[Tensor, ...]]] = {}

    def levels_of(
        self, layer: PrunableLayer, shape: tuple[int, ...], placement: Placement | None = None
    ) -> tuple[int | Tensor, dict[int, int]]:
        return self.route.levels_of(layer, shape, placement)

    def run(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        if not isinstance(self.route, LevelMapRoute):
            return self._run_uniform(layer, x)
        if isinstance(layer, NMLinear):
            return self._run_tokens(layer, x)
        convolution = layer.as_convolution()
        side = None if convolution is None else self._tile_side(layer, convolution, x)
        return self._run_every_level(layer, x) if side is None else self._run_tiles(layer, convolution, x, side)

    def _run_uniform(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        output = self.layers.at(layer, layer.pattern.index(self.route.level))(x)
        self.count(layer, self.levels_of(layer, tuple(output.shape))[1])
        return output

    def _run_every_level(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        """As the reference path does."""
        first, *others = self.route.held
        output = self.layers.at(layer, first)(x)
        levels, counts = self.levels_of(layer, tuple(output.shape))
        for level in others:
            if level in counts:
                output = torch.where(levels == level, self.layers.at(layer, level)(x), output)
        self.count(layer, counts)
        return output

    def _run_tokens(self, layer: NMLinear, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], layer.out_width)
        levels, counts = self.levels_of(layer, shape)
        self.count(layer, counts)
        members = self._members_of((layer.placement, shape[:-1]), levels.flatten(), counts)
        tokens, output = x.reshape(-1, x.shape[-1]), None
        for level, rows in members.items():
            part = self.layers.at(layer, level)(tokens[rows])
            output = part.new_empty((len(tokens), layer.out_width)) if output is None else output
            output[rows] = part
        return output.view(shape)

    def _tile_side(self, layer: PrunableLayer, convolution: Convolution, x: Tensor) -> int | None:
        """Side of a tile in pixels of this layer's map; None where tiles cannot or had better not be gathered."""
        grid, kernel = self.route.grid, tuple(layer.ranks.shape[2:])
        same_size = convolution.stride == (1, 1) and kernel == tuple(2 * side + 1 for side in convolution.padding)
        if not same_size or x.shape[0] != grid.levels.shape[0] or x.shape[2] * grid.width != x.shape[3] * grid.height:
            return None
        side, rest = divmod(grid.tile * x.shape[2], grid.height)
        # Computing every level reads the map once for each.
        gathered = (side + 2 * convolution.padding[0]) * (side + 2 * convolution.padding[1])
        return None if rest or gathered > len(self.route.held) * side**2 else side

    def _run_tiles(self, layer: PrunableLayer, convolution: Convolution, x: Tensor, side: int) -> Tensor:
        """Each tile with the pixels around it, from which the convolution makes just the tile's outputs."""
        images, _, height, width = x.shape
        counts = self.levels_of(layer, (images, layer.out_width, height, width))[1]
        self.count(layer, counts)
        levels, (above, before) = self.route.grid.levels, convolution.padding
        below, after = above + -height % side, before + -width % side
        windows = F.pad(x, (before, after, above, below)).movedim(1, 3)
        windows = windows.unfold(1, side + 2 * above, side).unfold(2, side + 2 * before, side)
        output = None
        for level, members in self._members_of('tiles', levels, self.route.held).items():
            at = self.layers.at(layer, level)
            part = F.conv2d(windows[members], at.weight, at.bias)
            if output is None:
                shape = (images, layer.out_width, height + -height % side, width + -width % side)
                output = torch.empty(shape, dtype=part.dtype, device=x.device, memory_format=torch.channels_last)
                tiles = output.movedim(1, 3).unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
            tiles[members] = part.movedim(1, 3)
        output = output[..., :height, :width]
        return output if convolution.activation is None else convolution.activation(output)

    def _members_of(self, key: Hashable, levels: Tensor, held: list[int] | dict[int, int]) -> dict[int, tuple]:
        """Indices of the outputs at each level."""
        if key not in self._members:
            self._members[key] = {level: (levels == level).nonzero(as_tuple=True) for level in held}
        return self._members[key]
