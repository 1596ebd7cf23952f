"""Code that finishes the sums of a vector of pixels and stores them: activation, PixelShuffle, scaling, residual."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from llvmlite import ir

from .instructions import PIXELS
from .ir import I32, I64, VECTOR, ZEROS, Builder, i64
from .job import Activation
from .vector_math import gelu

SHUFFLES = (1, 2, 3, 4)  # factors of PixelShuffle that the store does by itself


@dataclass(frozen=True)
class Row:
    """Outputs of one block on one row of a run, as values in the code.

    Attributes:
        image, y, x: where they begin; before PixelShuffle.
        vectors: of pixels.
        first, count: output channels.
        sums: where in scratch memory, in floats, their sums ``[vectors, block, PIXELS]`` are.
    """

    image: ir.Value
    y: ir.Value
    x: ir.Value
    vectors: ir.Value
    first: ir.Value
    count: ir.Value
    sums: ir.Value


class Storing:
    """Writes the code with ``builder`` for a job of ``fields`` and a thread's ``scratch``."""

    def __init__(self, builder: Builder, fields: dict[str, ir.Value], scratch: ir.Value) -> None:
        self.b, self.fields, self.scratch = builder, fields, scratch

    def ask_for(self, row: Row, share: tuple[ir.Value, ir.Value]) -> None:
        """Have the memory that :meth:`store` will need fetched while kernels run: every channel is on another page.

        Each of a block's parts asks for its ``share`` (part, parts): all at once would be more than memory delivers.
        """
        b, f = self.b, self.fields
        part, parts = share
        shuffle = b.sext(f['shuffle'], I64)
        channels = b.sdiv(row.count, b.mul(shuffle, shuffle))
        some = b.rounded_up(channels, parts)
        begin = b.mul(part, some)
        end = b.minimum(b.add(begin, some), channels)
        for name, write in (('output', True), ('residual', False)):
            given = b.icmp_unsigned('!=', b.ptrtoint(f[name], I64), i64(0))
            start = self._place(name, row, b.mul(row.y, shuffle), row.first, shuffle)
            with b.if_then(given), b.loop(end, begin) as index:
                line = b.at(f[name], b.add(start, b.mul(index, f[f'{name}_channel'])))
                with b.loop(b.mul(row.vectors, shuffle)) as vector:
                    b.prefetch(b.at(line, b.mul(vector, i64(PIXELS))), write)

    def _place(self, name: str, row: Row, down: ir.Value, channel: ir.Value, shuffle: ir.Value) -> ir.Value:
        """Floats from the beginning of output or residual to a run's first pixel in a row of the shuffled map."""
        b, f = self.b, self.fields
        return b.total(
            (row.image, f[f'{name}_image']),
            (b.sdiv(channel, b.mul(shuffle, shuffle)), f[f'{name}_channel']),
            (down, f[f'{name}_row']),
            (row.x, shuffle),
        )

    def store(self, row: Row, bias: ir.Value) -> None:
        """Finish a row's sums: one loop for each kind of epilogue, so that none is asked for inside."""
        b, f = self.b, self.fields
        after = b.append_basic_block('stored')
        added = b.zext(b.icmp_unsigned('!=', b.ptrtoint(f['residual'], I64), i64(0)), I32)
        kinds = list(itertools.product(SHUFFLES, Activation, (False, True)))
        kind = b.add(b.mul(b.add(b.mul(f['shuffle'], I32(len(Activation))), f['activation']), I32(2)), added)
        cases = b.switch(kind, after)
        for shuffle, activation, residual in kinds:
            case = b.append_basic_block(f'shuffle{shuffle}_{activation.name.lower()}')
            b.position_at_end(case)
            cases.add_case(I32((shuffle * len(Activation) + activation) * 2 + residual), case)
            self._store_loop(shuffle, activation, residual, row, bias)
            b.branch(after)
        b.position_at_end(after)

    def _store_loop(self, shuffle: int, activation: Activation, residual: bool, row: Row, bias: ir.Value) -> None:
        """``shuffle`` neighbouring channels become one row of neighbouring pixels (PixelShuffle); 1 leaves them."""
        b, f = self.b, self.fields
        factor, step = i64(shuffle), b.mul(f['block'], i64(PIXELS))
        with b.loop(b.sdiv(row.count, factor)) as group:
            index = b.mul(group, factor)
            channel = b.add(row.first, index)
            down = b.add(b.mul(row.y, factor), b.srem(b.sdiv(channel, factor), factor))
            places = {
                name: b.at(f[name], self._place(name, row, down, channel, factor)) for name in ('output', 'residual')
            }
            with b.loop(row.vectors) as vector:
                source = b.at(self.scratch, b.total(row.sums, (vector, step), (index, i64(PIXELS))))
                values = [
                    self._finished(activation, b.at(source, i64(j), VECTOR), b.add(channel, i64(j)), bias)
                    for j in range(shuffle)
                ]
                for part, value in enumerate(self._interleaved(values)):
                    shift = b.add(b.mul(vector, i64(shuffle * PIXELS)), i64(part * PIXELS))
                    if residual:
                        scaled = b.fmul(value, b.splat(f['scale'], VECTOR))
                        value = b.fadd(scaled, b.vector(b.at(places['residual'], shift), VECTOR))
                    b.put_vector(value, b.at(places['output'], shift))

    def _finished(self, activation: Activation, place: ir.Value, channel: ir.Value, bias: ir.Value) -> ir.Value:
        b = self.b
        value = b.load(place, typ=VECTOR, align=64)
        value = b.fadd(value, b.splat(b.element(bias, channel), VECTOR))
        if activation is Activation.NONE:
            return value
        if activation is Activation.GELU:
            return gelu(b, value)
        # Written so that NaN stays NaN.
        below = ZEROS
        if activation is Activation.SLOPE:
            below = b.fmul(value, b.splat(b.element(self.fields['slopes'], channel), VECTOR))
        return b.select(b.fcmp_ordered('<', value, ZEROS), below, value)

    def _interleaved(self, values: list[ir.Value]) -> list[ir.Value]:
        """From vectors a, b, ...: a0 b0 ... a1 b1 ..., as many vectors."""
        n = len(values)
        if n == 1:
            return values
        wide = values + [ZEROS] * (n == 3)
        order = [(k % n) * PIXELS + k // n for k in range(n * PIXELS)]
        return [self.b.picked(wide, order[k : k + PIXELS]) for k in range(0, n * PIXELS, PIXELS)]
