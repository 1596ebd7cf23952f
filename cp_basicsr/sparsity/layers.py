"""Prunable layers: a Conv2d, Conv3d or Linear that can run at every level of its pattern.

A layer is made from an existing one in place (its class is swapped), so parameters keep their native names, hooks stay,
and a module that stands at two places of a network stays one module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masks import level_mask, weight_ranks
from .pattern import NMPattern
from .placement import ImagePlacement, Placement, TokenPlacement
from .route import active_route


class _StraightThroughMask(torch.autograd.Function):
    """Zeros where the mask is False going forward; the whole gradient going back (straight-through)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@dataclass(frozen=True)
class Convolution:
    """A Conv2d with zero padding and the activation that the same module applies to its output.

    Attributes:
        stride: vertical and horizontal.
        padding: rows and columns of zeros on each side.
        activation: None: the outputs are left as they are.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    activation: nn.Module | None = None


class PrunableLayer(nn.Module):
    """What every prunable layer shares. Subclasses say how to run with given weights and where outputs lie.

    Attributes:
        layer_name: dotted name in the converted network.
        pattern: the layer's own :class:`NMPattern`.
        ranks: uint8 buffer shaped like the dense weight; state, because fine-tuned weights fit these masks only.
        level_weights, level_biases: with ``weights: per_level`` one parameter for each sparse level, else None.
        placement: where the outputs lie on the image.
        straight_through: whether a sparse level's gradient reaches the weights it masks (so that their ranks can rise
            again), or only those it keeps. The former is an estimate that serves ranks which may still change.
    """

    layer_name: str
    pattern: NMPattern
    ranks: Tensor
    placement: Placement
    straight_through: bool
    level_weights: nn.ParameterList | None
    level_biases: nn.ParameterList | None

    def start_sparsity(self, name: str, pattern: NMPattern, per_level: bool) -> None:
        """Give a layer, whose class has just been swapped, its pattern, ranks and (``per_level``) own values."""
        self.layer_name = name
        self.pattern = pattern
        self._plain_prefix: str | None = None
        self.register_load_state_dict_post_hook(_after_load)
        self.placement = self.default_placement()
        self.straight_through = True
        weight, bias = self.dense_values()
        self.register_buffer('ranks', weight_ranks(weight, pattern.m))
        self.level_weights = self.level_biases = None
        if per_level:
            sparse_levels = range(pattern.densest)
            self.level_weights = nn.ParameterList([weight.detach().clone() for _ in sparse_levels])
            if bias is not None:
                self.level_biases = nn.ParameterList([bias.detach().clone() for _ in sparse_levels])

    # What subclasses define.

    def default_placement(self) -> Placement:
        """Where the outputs lie unless the architecture says otherwise."""
        return ImagePlacement()

    def dense_values(self) -> tuple[Tensor, Tensor | None]:
        """The weight ``[out, in, *kernel]`` and bias ``[out]`` that the base network computes with."""
        return self.weight, self.bias

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output with other values in place of its own."""
        raise NotImplementedError

    def run_dense(self, x: Tensor) -> Tensor:
        """The base network's own computation, bit for bit."""
        raise NotImplementedError

    def as_convolution(self) -> Convolution | None:
        """The plain convolution that :meth:`level_values` are the values of; None: the layer is something else."""
        return None

    def baked_values(self, level: int) -> dict[str, Tensor]:
        """Native parameter names of the layer and their values with the zeros of a level written in."""
        weight, bias = self.level_values(level)
        return {'weight': weight} | ({} if bias is None else {'bias': bias})

    # What they share.

    def forward(self, x: Tensor) -> Tensor:
        route = active_route()
        return self.run_dense(x) if route is None else route.run(self, x)

    def run_level(self, x: Tensor, level: int) -> Tensor:
        """Output at one level for the whole input."""
        if level == self.pattern.densest:
            return self.run_dense(x)
        return self.run_with(x, *self.level_values(level))

    def level_values(self, level: int) -> tuple[Tensor, Tensor | None]:
        """Masked weight and bias of a level; see ``straight_through`` for their gradients."""
        weight, bias = self.dense_values()
        if level == self.pattern.densest:
            return weight, bias
        if self.level_weights is not None:
            weight = self.level_weights[level]
            bias = None if self.level_biases is None else self.level_biases[level]
        if not self.straight_through:
            return torch.where(self.mask(level), weight, 0), bias
        return _StraightThroughMask.apply(weight, self.mask(level)), bias

    def mask(self, level: int) -> Tensor:
        """bool mask of a level, shaped like the dense weight."""
        return level_mask(self.ranks, self.pattern, level)

    @torch.no_grad()
    def refresh_ranks(self) -> int:
        """Rank the dense weights anew. Returns how many weights changed their rank."""
        ranks = weight_ranks(self.dense_values()[0], self.pattern.m)
        changed = int((ranks != self.ranks).sum())
        self.ranks.copy_(ranks)
        return changed

    @property
    def out_width(self) -> int:
        """Output channels."""
        return self.ranks.shape[0]

    def nonzeros(self, level: int) -> int:
        """Weights kept at a level: the multiply-adds for one output position."""
        return self.nonzeros_with(self.pattern.levels[level])

    def nonzeros_with(self, n: int) -> int:
        """Weights kept if N were ``n``."""
        out_width, in_width, *kernel = self.ranks.shape
        return out_width * self.pattern.kept(n, in_width) * math.prod(kernel)

    def sparsity_keys(self) -> list[str]:
        """State-dict names, relative to the layer, that a plain checkpoint of the base network does not have."""
        keys = ['ranks']
        for name in ('level_weights', 'level_biases'):
            values = getattr(self, name)
            keys += [] if values is None else [f'{name}.{index}' for index in range(len(values))]
        return keys

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        # A dict that names nothing of this layer (the classifier alone, say) must not disturb its ranks.
        plain = any(key.startswith(prefix) for key in state_dict) and not any(
            prefix + key in state_dict for key in self.sparsity_keys()
        )
        self._plain_prefix = prefix if plain else None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def adopt_dense_values(self) -> None:
        """Start from the base network's values: ranks and, with ``per_level``, the levels' own values."""
        self.refresh_ranks()
        weight, bias = self.dense_values()
        with torch.no_grad():
            for own in self.level_weights or ():
                own.copy_(weight)
            for own in self.level_biases or ():
                own.copy_(bias)


def plain_convolution(conv: nn.Conv2d) -> Convolution | None:
    """The geometry of a Conv2d without groups, dilation or an unusual padding, else None."""
    usual = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == 'zeros'
    return Convolution(conv.stride, conv.padding) if usual and not isinstance(conv.padding, str) else None


def _after_load(layer: PrunableLayer, incompatible: Any) -> None:
    """After a plain checkpoint of the base network nothing is missing: ranks follow from the weights."""
    if layer._plain_prefix is None:
        return
    own = {layer._plain_prefix + key for key in layer.sparsity_keys()}
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in own]
    layer._plain_prefix = None
    layer.adopt_dense_values()


class _NMConv(PrunableLayer):
    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def run_dense(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias)


class NMConv2d(_NMConv, nn.Conv2d):
    """A Conv2d (groups=1) with levels; groups of M run along its input channels."""

    def as_convolution(self) -> Convolution | None:
        return plain_convolution(self)


class NMConv3d(_NMConv, nn.Conv3d):
    """A Conv3d (groups=1) with levels, for video networks such as DUF."""


class NMLinear(PrunableLayer, nn.Linear):
    """A Linear with levels; groups of M run along its input features."""

    def default_placement(self) -> Placement:
        return TokenPlacement()

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def run_dense(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
