"""The loops around the kernels, compiled once for this processor: take a band, fill scratch, compute, store.

Written with LLVM's IR builder because there is no compiler where the plugin is installed. What it does, in words::

    while a band is left:                             # several threads run this at once
        for each strip of the band:
            copy its inputs with their border into scratch
            for each level that its tiles hold, and each block of output channels:
                for each part of the block's code, each row, each run of neighbouring tiles of this level:
                    sums += kernel(scratch, weights of the level)
                output = shuffle(activation(sums + bias)) * scale + residual
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from .filling import Filling
from .instructions import PIXELS
from .ir import I64, POINTER, Builder, i64
from .job import BAND, GROUP, RUN, STRIP, Job, LevelCode
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
            strip = b.record(f['strips'], b.add(band['first'], index), STRIP)
            self.filling.fill(strip)
            with b.loop(strip['count']) as number:
                self._compute(strip, b.record(f['groups'], b.add(strip['first'], number), GROUP))

    def _compute(self, strip: dict[str, ir.Value], group: dict[str, ir.Value]) -> None:
        """What of a strip runs at one level: each part of the code for all of it, before the next part is fetched."""
        b, f = self.b, self.fields
        level = b.at(f['levels'], b.mul(group['level'], i64(ctypes.sizeof(LevelCode))), ir.IntType(8))
        entries, weights, bias, parts = (b.field(level, LevelCode, name) for name, _ in LevelCode._fields_)
        blocks = b.rounded_up(f['outputs'], f['block'])
        kernel = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, I64])
        area = b.mul(f['block'], i64(PIXELS))
        with b.loop(blocks) as block:
            first = b.mul(block, f['block'])
            count = b.minimum(b.sub(f['outputs'], first), f['block'])
            with b.loop(parts) as part:
                index = b.total((block, parts), part)
                entry, values = b.element(entries, index, POINTER), b.element(weights, index, POINTER)
                with b.loop(strip['rows']) as row, b.loop(group['count']) as number:
                    run = b.record(f['runs'], b.add(group['first'], number), RUN)
                    self.storing.ask_for(_piece(b, strip, run), row, first, count, (part, parts))
                    source = b.at(self.scratch, b.total((b.mul(row, f['stride']), f['scratch_row']), run['x']))
                    b.call(Callee(entry, kernel), [source, values, self._sums(group, run, row, area), run['vectors']])
            with b.loop(strip['rows']) as row, b.loop(group['count']) as number:
                run = b.record(f['runs'], b.add(group['first'], number), RUN)
                sums = self._sums(group, run, row, area)
                self.storing.store(sums, area, _piece(b, strip, run), row, first, count, bias)

    def _sums(self, group: dict[str, ir.Value], run: dict[str, ir.Value], row: ir.Value, area: ir.Value) -> ir.Value:
        """Where in scratch memory the sums of a run on one row begin."""
        b, f = self.b, self.fields
        position = b.total((row, group['vectors']), run['before'])
        return b.at(self.scratch, b.total(f['sums'], (position, area)))


def _piece(b: Builder, strip: dict[str, ir.Value], run: dict[str, ir.Value]) -> dict[str, ir.Value]:
    """A run of a strip as a strip of its own."""
    return {**strip, 'x': b.add(strip['x'], run['x']), 'vectors': run['vectors']}


@cache
def driver() -> Routine:
    """The driver, compiled once."""
    return Routine(_Driver())
