"""The loops around the kernels, compiled once for this processor: take a band, fill scratch, compute, store.

Written with LLVM's IR builder because there is no compiler where the plugin is installed. What it does, in words::

    while a band is left:                             # several threads run this at once
        for each segment of the band:
            copy its inputs with their border into scratch
            for each block of output channels:
                for each part of its code, and each row:
                    sums += kernel(scratch, weights of the level)
                output = shuffle(activation(sums + bias)) * scale + residual
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from .filling import Filling
from .instructions import PIXELS
from .ir import I64, POINTER, i64
from .job import BAND, SEGMENT, Job, LevelCode
from .native import Callee, Routine, RoutineSource
from .storing import Storing


class _Driver(RoutineSource):
    """Writes the convolution; its pieces are bands."""

    def __init__(self) -> None:
        super().__init__(Job, 'band_count', 'next_band')

    def prepare(self) -> None:
        self.filling = Filling(self.b, self.fields, self.scratch)
        self.storing = Storing(self.b, self.fields)

    def work(self, piece: ir.Value) -> None:
        b, f = self.b, self.fields
        mirrored = b.sub(b.sub(f['band_count'], i64(1)), piece)
        upwards = b.icmp_signed('!=', f['upwards'], i64(0))
        band = b.record(f['bands'], b.select(upwards, mirrored, piece), BAND)
        with b.loop(band['count']) as index:
            segment = b.record(f['segments'], b.add(band['first'], index), SEGMENT)
            self.filling.fill(segment)
            self._compute(segment)

    def _compute(self, segment: dict[str, ir.Value]) -> None:
        b, f = self.b, self.fields
        level = b.at(f['levels'], b.mul(segment['level'], i64(ctypes.sizeof(LevelCode))), ir.IntType(8))
        entries, weights, bias, parts = (b.field(level, LevelCode, name) for name, _ in LevelCode._fields_)
        blocks = b.rounded_up(f['outputs'], f['block'])
        kernel = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, I64])
        sums = b.at(self.scratch, f['sums'])
        area = b.mul(f['block'], i64(PIXELS))
        with b.loop(blocks) as block:
            first = b.mul(block, f['block'])
            count = b.minimum(b.sub(f['outputs'], first), f['block'])
            with b.loop(parts) as part, b.loop(segment['rows']) as row:
                index = b.total((block, parts), part)
                self.storing.ask_for(segment, row, first, count, (part, parts))
                b.call(
                    Callee(b.element(entries, index, POINTER), kernel),
                    [
                        b.at(self.scratch, b.total((b.mul(row, f['stride']), f['scratch_row']))),
                        b.element(weights, index, POINTER),
                        b.at(sums, b.total((b.mul(row, segment['vectors']), area))),
                        segment['vectors'],
                    ],
                )
            with b.loop(segment['rows']) as row:
                begun = b.at(sums, b.total((b.mul(row, segment['vectors']), area)))
                self.storing.store(begun, area, segment, row, first, count, bias)


@cache
def driver() -> Routine:
    """The driver, compiled once."""
    return Routine(_Driver())
