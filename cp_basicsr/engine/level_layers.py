"""Prunable layers at single levels, their masked values made once, for devices that no code is compiled for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cp_basicsr.precision import PRECISIONS
from cp_basicsr.sparsity import NMLinear, PrunableLayer

from .semi_structured import cuda_seconds, fits, quicker_weight


class LevelLayer(nn.Module):
    """A prunable layer at one level.

    Args:
        layer: the layer.
        weight, bias: its masked values, of the type and in the layout to compute in.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: PrunableLayer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that the layer does not become a child
        self.register_buffer('weight', weight, persistent=False)
        self.register_buffer('bias', bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._layer[0].run_with(x, self.weight, self.bias)


class SemiStructuredLayer(LevelLayer):
    """A Linear with 2:4 semi-structured weights, whose kernels take contiguous tokens of their own type only."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype).contiguous())


class LevelLayers:
    """The layers of one network in one precision, each level made when it is first needed.

    Args:
        precision: a key of :data:`cp_basicsr.precision.PRECISIONS`.
        say: is told, in one sentence, when 2:4 semi-structured weights cannot be had.
        seconds: times a call, to find which weights are quicker.

    Attributes:
        semi_structured: names of the layers that have 2:4 semi-structured weights at some level.
    """

    def __init__(
        self,
        precision: str,
        say: Callable[[str], None],
        seconds: Callable[[Callable[[], Tensor]], float] = cuda_seconds,
    ) -> None:
        self.dtype = PRECISIONS[precision]
        self.say = say
        self.seconds = seconds
        self.semi_structured: set[str] = set()
        self._made: dict[tuple[PrunableLayer, int], LevelLayer] = {}

    def at(self, layer: PrunableLayer, level: int) -> LevelLayer:
        """The layer at a level index."""
        key = layer, level
        if key not in self._made:
            self._made[key] = self._make(layer, level)
        return self._made[key]

    @torch.no_grad()
    def _make(self, layer: PrunableLayer, level: int) -> LevelLayer:
        weight, bias = (None if value is None else value.detach().to(self.dtype) for value in layer.level_values(level))
        if weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        if isinstance(layer, NMLinear) and weight.is_cuda and fits(weight):
            with torch.cuda.device(weight.device):
                return self._quicker(layer, weight, bias)
        return LevelLayer(layer, weight, bias)

    def _quicker(self, layer: NMLinear, weight: Tensor, bias: Tensor | None) -> LevelLayer:
        try:
            chosen = quicker_weight(weight, self.seconds)
        except RuntimeError as error:
            self.say(f'Linear layers run with dense masked weights: 2:4 semi-structured ones cannot be had ({error}).')
            chosen = weight
        if chosen is weight:
            return LevelLayer(layer, weight, bias)
        self.semi_structured.add(layer.layer_name)
        return SemiStructuredLayer(layer, chosen, bias)
