"""Compiled layers by themselves, and what PyTorch computes in double precision in their place."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from references import assert_near
from torch import Tensor

from cp_basicsr.engine.compiled_layer import PLAIN, CompiledLayer, Epilogue
from cp_basicsr.engine.host import EngineUnavailableError, chosen_set, processor_sets
from cp_basicsr.engine.inputs import Inputs
from cp_basicsr.engine.instructions import instruction_set
from cp_basicsr.engine.job import Activation
from cp_basicsr.engine.schedule import level_schedule, uniform_schedule

try:
    SETS = processor_sets()
except EngineUnavailableError:
    SETS = ()
try:
    HAS_BF16 = 'avx512' in SETS and chosen_set('bf16') == 'avx512_bf16'
except EngineUnavailableError:
    HAS_BF16 = False


def _sets(*names: str) -> pytest.MarkDecorator:
    here = {*SETS, 'avx512_bf16'} if HAS_BF16 else set(SETS)
    marks = {name: [] if name in here else pytest.mark.skip(f'no {name} here') for name in names}
    return pytest.mark.parametrize('isa', [pytest.param(name, marks=marks[name]) for name in names])


each_set = _sets('avx512', 'avx2')
each_set_and_bf16 = _sets('avx512', 'avx2', 'avx512_bf16')
needs_engine = pytest.mark.skipif(not SETS, reason='no compiled code can run on this processor')


def random_mask(weight_shape: tuple[int, ...], n: int, m: int, generator: torch.Generator) -> Tensor:
    """Any n of each m consecutive input channels, ceil(n * r / m) of a last group of r."""
    out_width, in_width, *kernel = weight_shape
    mask = torch.zeros(weight_shape, dtype=torch.bool)
    for start in range(0, in_width, m):
        length = min(m, in_width - start)
        order = torch.rand(out_width, length, *kernel, generator=generator).argsort(dim=1)
        mask[:, start : start + length] = order < math.ceil(n * length / m)
    return mask


class Layer:
    """Random values at several levels, compiled, and the same for the reference.

    Args:
        isa: name of an instruction set.
        masks: bool ``[out, in, kh, kw]`` of each level.
        bias: whether there is one.
    """

    def __init__(
        self, isa: str, masks: list[Tensor], stride: int, padding: tuple[int, int], bias: bool, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.stride, self.padding = stride, padding
        self.weights = [torch.randn(mask.shape, generator=generator) * mask for mask in masks]
        self.biases = [torch.randn(len(mask), generator=generator) if bias else None for mask in masks]
        values = list(zip(self.weights, self.biases, masks, strict=True))
        self.compiled = CompiledLayer(values, stride, padding, instruction_set(isa))

    def run(
        self, x: Tensor | Inputs, levels: int | Tensor, epilogue: Epilogue = PLAIN, upwards: bool = False
    ) -> Tensor:
        """The compiled layer at one level, or with levels ``[B, h, w]`` of its outputs."""
        inputs = x if isinstance(x, Inputs) else Inputs((x,))
        scratch, threads = self.compiled.scratch, torch.get_num_threads()
        if isinstance(levels, int):
            height, width = self.compiled.out_size(*inputs.shape[2:])
            schedule = uniform_schedule(inputs.shape[0], height, width, levels, scratch, threads)
        else:
            schedule = level_schedule(levels.numpy(), scratch, threads)
        return self.compiled.run(inputs, schedule, epilogue, upwards)

    def expected(self, x: Tensor, levels: int | Tensor) -> Tensor:
        """F.conv2d of the masked weights in double precision."""
        return self._convolved(x.double(), levels, lambda values: values)

    def _convolved(self, x: Tensor, levels: int | Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        outputs = [
            F.conv2d(
                change(x),
                change(weight.double()),
                None if bias is None else change(bias.double()),
                self.stride,
                self.padding,
            )
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        if isinstance(levels, int):
            return outputs[levels]
        selected = outputs[0]
        for level, output in enumerate(outputs[1:], 1):
            selected = torch.where((levels == level)[:, None], output, selected)
        return selected

    def check(self, x: Tensor | Inputs, levels: int | Tensor) -> None:
        """Compiled and expected outputs are equal but for rounding, whichever end the work begins at."""
        whole = x.made() if isinstance(x, Inputs) else x
        output, expected = self.run(x, levels), self.expected(whole, levels)
        assert_near(output, expected, self._convolved(whole.double(), levels, torch.abs))
        assert torch.equal(self.run(x, levels, upwards=True), output)


def finished(sums: Tensor, epilogue: Epilogue) -> Tensor:
    """An epilogue in PyTorch."""
    if epilogue.activation is Activation.RELU:
        sums = F.relu(sums)
    elif epilogue.activation is Activation.SLOPE:
        sums = F.prelu(sums, epilogue.slopes.to(sums.dtype))
    elif epilogue.activation is Activation.GELU:
        sums = F.gelu(sums)
    if epilogue.shuffle > 1:
        sums = F.pixel_shuffle(sums, epilogue.shuffle)
    return sums if epilogue.residual is None else sums * epilogue.scale + epilogue.residual
