"""Layer normalisation over the channels of a feature map, as compiled code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from llvmlite import ir
from torch import Tensor

from . import threads
from .instructions import PIXELS
from .ir import F32, VECTOR, ZEROS, i64
from .job import map_fields, map_values
from .memory import empty_map, readable_beyond
from .native import Routine, RoutineSource
from .vector_math import constant, fused


class _Job(ctypes.Structure):
    """Strides in floats. Pieces of work are rows of images; the last vector of a row may reach over its end."""

    _fields_ = [
        *map_fields('input'),
        *map_fields('output'),
        ('channels', ctypes.c_int64),
        ('height', ctypes.c_int64),
        ('vectors', ctypes.c_int64),
        ('weight', ctypes.c_void_p),
        ('bias', ctypes.c_void_p),
        ('epsilon', ctypes.c_float),
        ('share', ctypes.c_float),
        ('count', ctypes.c_int64),
        ('following', ctypes.c_int64),
    ]


class _Source(RoutineSource):
    def __init__(self) -> None:
        super().__init__(_Job, 'count', 'following')

    def prepare(self) -> None:
        self.sum = self.b.alloca(VECTOR)

    def work(self, piece: ir.Value) -> None:
        b, f = self.b, self.fields
        image, row = b.sdiv(piece, f['height']), b.srem(piece, f['height'])
        share = b.splat(f['share'], VECTOR)
        with b.loop(f['vectors']) as vector:
            source, target = (
                b.at(f[name], b.total((image, f[f'{name}_image']), (row, f[f'{name}_row']), (vector, i64(PIXELS))))
                for name in ('input', 'output')
            )
            mean = b.fmul(self._sum(source, lambda x: x), share)
            deviation = self._sum(source, lambda x: self._square(b.fsub(x, mean)))
            variance = fused(b, deviation, share, b.splat(f['epsilon'], VECTOR))
            root = b.call(b.intrinsic(f'llvm.sqrt.v{PIXELS}f32', ir.FunctionType(VECTOR, [VECTOR])), [variance])
            scale = b.fdiv(constant(1.0), root)
            with b.loop(f['channels']) as channel:
                x = self._input(source, channel)
                weight, bias = (b.splat(b.element(f[name], channel, F32), VECTOR) for name in ('weight', 'bias'))
                y = fused(b, b.fmul(b.fsub(x, mean), scale), weight, bias)
                b.put_vector(y, b.at(target, b.mul(channel, f['output_channel'])))

    def _square(self, x: ir.Value) -> ir.Value:
        return self.b.fmul(x, x)

    def _input(self, source: ir.Value, channel: ir.Value) -> ir.Value:
        return self.b.vector(self.b.at(source, self.b.mul(channel, self.fields['input_channel'])), VECTOR)

    def _sum(self, source: ir.Value, of: Callable[[ir.Value], ir.Value]) -> ir.Value:
        b = self.b
        b.store(ZEROS, self.sum)
        with b.loop(self.fields['channels']) as channel:
            value = of(self._input(source, channel))
            b.store(b.fadd(b.load(self.sum, typ=VECTOR), value), self.sum)
        return b.load(self.sum, typ=VECTOR)


@cache
def _routine() -> Routine:
    return Routine(_Source())


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise each pixel over its channels.

    Args:
        x: float32 ``[B, C, H, W]``.
        weight, bias: float32 ``[C]``.
        epsilon: added to the variance.

    Returns:
        float32 ``[B, C, H, W]``.
    """
    x = readable_beyond(x)
    images, channels, height, width = x.shape
    output = empty_map(*x.shape)
    job = _Job(
        **map_values('input', x),
        **map_values('output', output),
        channels=channels,
        height=height,
        vectors=-(-width // PIXELS),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        epsilon=epsilon,
        share=1 / channels,
        count=images * height,
    )
    threads.run(_routine(), job, job.count, 0)
    return output
