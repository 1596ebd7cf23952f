"""Attention within shifted windows of 8 x 8 pixels, straight from a feature map to a feature map, as compiled code.

Scores of a window and head never leave the first-level cache, and windows are cut, shifted and put back while their
values are read and written; in PyTorch these copies and the scores in memory take several times as long as the
arithmetic.
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir
from torch import Tensor

from . import threads
from .instructions import PIXELS
from .ir import F32, I32, VECTOR, ZEROS, i64
from .job import map_fields, map_values
from .memory import empty_map
from .native import Routine, RoutineSource
from .vector_math import constant, exponential, fused, larger

SIDE = 8  # pixels of a window; shifts are multiples of half of it
HALF = SIDE // 2
TOKENS = SIDE * SIDE
GROUPS = TOKENS // PIXELS  # vectors of queries
TOGETHER = 8  # keys whose scores are computed at once
MOST_CHANNELS = 16  # of a head whose sums are kept in registers at once
QUARTER = ir.VectorType(F32, HALF)


class _Job(ctypes.Structure):
    """Strides in floats. Pieces of work are windows.

    ``bias`` points at ``[4, heads, keys, queries]``: added to the scores in inner windows, in those that the cyclic
    shift joins from the left and right border, from the upper and lower one, and from both.
    """

    _fields_ = [
        *map_fields('input'),
        *map_fields('output'),
        ('height', ctypes.c_int64),
        ('width', ctypes.c_int64),
        ('shift', ctypes.c_int64),
        ('bias', ctypes.c_void_p),
        ('scale', ctypes.c_float),
        ('count', ctypes.c_int64),
        ('following', ctypes.c_int64),
    ]


class _Source(RoutineSource):
    """Scratch memory holds queries, keys and values ``[3, channels of a head, TOKENS]``, then scores."""

    def __init__(self, heads: int, width: int) -> None:
        self.heads, self.width = heads, width
        super().__init__(_Job, 'count', 'following')

    def prepare(self) -> None:
        self.most, self.total = (self.b.alloca(VECTOR) for _ in range(2))
        self.sums = [self.b.alloca(VECTOR) for _ in range(min(MOST_CHANNELS, self.width))]
        size = self.width * TOKENS
        self.queries, self.keys, self.values, self.scores = (self.b.at(self.scratch, i64(k * size)) for k in range(4))

    def work(self, piece: ir.Value) -> None:
        b, f = self.b, self.fields
        rows, columns = (b.sdiv(f[name], i64(SIDE)) for name in ('height', 'width'))
        image, inside = b.sdiv(piece, b.mul(rows, columns)), b.srem(piece, b.mul(rows, columns))
        row, column = b.sdiv(inside, columns), b.srem(inside, columns)
        shifted = b.zext(b.icmp_signed('>', f['shift'], i64(0)), i64(0).type)
        joined = [
            b.mul(shifted, b.zext(b.icmp_signed('==', at, b.sub(number, i64(1))), i64(0).type))
            for at, number in ((column, columns), (row, rows))
        ]
        kind = b.total(joined[0], (joined[1], i64(2)))
        place = (image, b.mul(row, i64(SIDE)), b.mul(column, i64(SIDE)))
        with b.loop(i64(self.heads)) as head:
            self._gather(place, head)
            table = b.total((b.total((kind, i64(self.heads)), head), i64(TOKENS * TOKENS)))
            with b.loop(i64(GROUPS)) as group:
                shift = b.mul(group, i64(PIXELS))
                self._score(b.at(f['bias'], b.add(table, shift)), shift)
                self._weigh()
                for first in range(0, self.width, MOST_CHANNELS):
                    self._sum_up(place, head, group, first)

    def _pixel(self, place: tuple[ir.Value, ...], name: str, row: ir.Value, half: ir.Value) -> ir.Value:
        """Floats from an image's beginning to half a row of a window, where the cyclic shift has it."""
        b, f = self.b, self.fields
        image, top, left = place
        y = b.srem(b.total(top, row, f['shift']), f['height'])
        x = b.srem(b.total(left, (half, i64(HALF)), f['shift']), f['width'])
        return b.total((image, f[f'{name}_image']), (y, f[f'{name}_row']), x)

    def _gather(self, place: tuple[ir.Value, ...], head: ir.Value) -> None:
        b, f = self.b, self.fields
        with b.loop(i64(SIDE)) as row, b.loop(i64(2)) as half:
            start = self._pixel(place, 'input', row, half)
            token = b.total((row, i64(SIDE)), (half, i64(HALF)))
            for part in range(3):
                first = b.total((b.total((i64(part), i64(self.heads)), head), i64(self.width)))
                with b.loop(i64(self.width)) as channel:
                    source = b.total(start, (b.add(first, channel), f['input_channel']))
                    target = b.total(token, (b.total(i64(part * self.width), channel), i64(TOKENS)))
                    value = b.load(b.at(f['input'], source), typ=QUARTER, align=4)
                    b.store(value, b.at(self.scratch, target), align=4)

    def _score(self, bias: ir.Value, shift: ir.Value) -> None:
        """Scores of 16 queries against all keys, and their largest."""
        b = self.b
        scale = b.splat(self.fields['scale'], VECTOR)
        b.store(constant(float('-inf')), self.most)
        with b.loop(i64(TOKENS // TOGETHER)) as block:
            first = b.mul(block, i64(TOGETHER))
            sums = [ZEROS] * TOGETHER
            for channel in range(self.width):
                query = b.vector(b.at(self.queries, b.add(shift, i64(channel * TOKENS))), VECTOR)
                for k in range(TOGETHER):
                    key = b.element(self.keys, b.add(first, i64(channel * TOKENS + k)), F32)
                    sums[k] = fused(b, query, b.splat(key, VECTOR), sums[k])
            most = b.load(self.most, typ=VECTOR)
            for k, product in enumerate(sums):
                key = b.add(first, i64(k))
                score = fused(b, product, scale, b.vector(b.at(bias, b.mul(key, i64(TOKENS))), VECTOR))
                b.put_vector(score, b.at(self.scores, b.mul(key, i64(PIXELS))))
                most = larger(b, score, most)
            b.store(most, self.most)

    def _weigh(self) -> None:
        """Scores become weights, whose sum is kept: exp(score - largest)."""
        b = self.b
        most = b.load(self.most, typ=VECTOR)
        b.store(ZEROS, self.total)
        with b.loop(i64(TOKENS)) as key:
            place = b.at(self.scores, b.mul(key, i64(PIXELS)))
            weight = exponential(b, b.fsub(b.vector(place, VECTOR), most))
            b.put_vector(weight, place)
            b.store(b.fadd(b.load(self.total, typ=VECTOR), weight), self.total)

    def _sum_up(self, place: tuple[ir.Value, ...], head: ir.Value, group: ir.Value, first: int) -> None:
        """Weighted means of the values, for 16 queries and some of the head's channels."""
        b, f = self.b, self.fields
        sums = self.sums[: self.width - first]
        for total in sums:
            b.store(ZEROS, total)
        with b.loop(i64(TOKENS)) as key:
            weight = b.vector(b.at(self.scores, b.mul(key, i64(PIXELS))), VECTOR)
            for channel, total in enumerate(sums):
                value = b.element(self.values, b.add(key, i64((first + channel) * TOKENS)), F32)
                b.store(fused(b, weight, b.splat(value, VECTOR), b.load(total, typ=VECTOR)), total)
        share = b.fdiv(constant(1.0), b.load(self.total, typ=VECTOR))
        results = [b.fmul(b.load(total, typ=VECTOR), share) for total in sums]
        base = b.total((head, i64(self.width)), i64(first))
        for quarter in range(PIXELS // HALF):
            row = b.total((group, i64(PIXELS // SIDE)), i64(quarter // 2))
            start = self._pixel(place, 'output', row, i64(quarter % 2))
            lanes = ir.Constant(ir.VectorType(I32, HALF), list(range(quarter * HALF, (quarter + 1) * HALF)))
            for channel, result in enumerate(results):
                target = b.total(start, (b.add(base, i64(channel)), f['output_channel']))
                b.store(b.shuffle_vector(result, result, lanes), b.at(f['output'], target), align=4)


@cache
def _routine(heads: int, width: int) -> Routine:
    return Routine(_Source(heads, width))


def window_attention(qkv: Tensor, heads: int, shift: int, bias: Tensor, scale: float) -> Tensor:
    """Multi-head attention within windows of ``SIDE x SIDE`` pixels of a map that is shifted cyclically.

    Args:
        qkv: float32 ``[B, 3 * C, H, W]``, neighbouring columns adjacent; queries, keys, values, each by heads. ``H``
            and ``W`` are multiples of ``SIDE``.
        heads: that divide ``C``.
        shift: 0 or ``HALF`` pixels, to the upper left.
        bias: float32 ``[4, heads, TOKENS, TOKENS]`` (key, query), added to the scores: of inner windows, and of those
            that the shift joins from left and right, from above and below, and from both.
        scale: of the products.

    Returns:
        float32 ``[B, C, H, W]``.

    Raises:
        ValueError: no whole number of windows covers the map.
    """
    images, channels, height, width = qkv.shape
    if height % SIDE or width % SIDE:
        raise ValueError(f'a map of {height} x {width} is no whole number of windows of {SIDE} x {SIDE}')
    out_channels = channels // 3
    output = empty_map(images, out_channels, height, width)
    job = _Job(
        **map_values('input', qkv),
        **map_values('output', output),
        height=height,
        width=width,
        shift=shift,
        bias=bias.data_ptr(),
        scale=scale,
        count=images * (height // SIDE) * (width // SIDE),
    )
    head_width = out_channels // heads
    threads.run(_routine(heads, head_width), job, job.count, 3 * head_width * TOKENS + TOKENS * PIXELS)
    return output
