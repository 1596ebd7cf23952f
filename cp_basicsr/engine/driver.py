"""The loops around the kernels, compiled once for this processor: take a band, fill scratch, compute, store.

Written with LLVM's IR builder because there is no compiler where the plugin is installed. What it does, in words::

    while a band is left:                             # several threads run this at once
        for each strip of the band:
            copy its inputs with their border into scratch
            for each level that its tiles hold, and each block of output channels:
                if Winograd's convolution pays at this level:
                    sums = transformed back(transformed weights * transformed scratch)
                else for each part of the block's code, each row, each run of neighbouring tiles of this level:
                    sums += kernel(scratch, weights of the level)
                output = shuffle(activation(sums + bias)) * scale + residual
"""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from .filling import Filling
from .ir import I8, I64, POINTER, i64
from .job import BAND, GROUP, STRIP, Job, LevelCode
from .native import Callee, Routine, RoutineSource
from .paired import PairedTransforming
from .runs import Runs
from .storing import Storing
from .transforming import Transforming


class Driver(RoutineSource):
    """Writes the convolution; its pieces are bands.

    Args:
        paired: products of Winograd's convolution are taken in bf16, of two channels at once.
    """

    def __init__(self, paired: bool) -> None:
        self._transforming = PairedTransforming if paired else Transforming
        super().__init__(Job, 'band_count', 'next_band')

    def prepare(self) -> None:
        self.filling = Filling(self.b, self.fields, self.scratch)
        self.transforming = self._transforming(self.b, self.fields, self.scratch)
        self.storing = Storing(self.b, self.fields, self.scratch)

    def work(self, piece: ir.Value) -> None:
        b, f = self.b, self.fields
        mirrored = b.sub(b.sub(f['band_count'], i64(1)), piece)
        upwards = b.icmp_signed('!=', f['upwards'], i64(0))
        band = b.record(f['bands'], b.select(upwards, mirrored, piece), BAND)
        with b.loop(band['count']) as index:
            strip = b.record(f['strips'], b.add(band['first'], index), STRIP)
            self.filling.fill(strip)
            ordinary = self.filling.ordinary()
            with b.loop(strip['count']) as number:
                self._compute(strip, b.record(f['groups'], b.add(strip['first'], number), GROUP), ordinary)

    def _compute(self, strip: dict[str, ir.Value], group: dict[str, ir.Value], ordinary: ir.Value) -> None:
        """What of a strip runs at one level."""
        b, f = self.b, self.fields
        level = b.at(f['levels'], b.mul(group['level'], i64(ctypes.sizeof(LevelCode))), I8)
        values = {name: b.field(level, LevelCode, name) for name, _ in LevelCode._fields_}
        given = b.icmp_unsigned('!=', b.ptrtoint(values['transformed'], I64), i64(0))
        transforms = b.and_(given, ordinary)
        some = b.select(transforms, self.transforming.rows_at_once(strip, group), strip['rows'])
        with b.loop(b.rounded_up(strip['rows'], some)) as index:
            top = b.mul(index, some)
            runs = Runs(b, f, strip, group, top, b.minimum(some, b.sub(strip['rows'], top)))
            with b.if_then(transforms):
                self.transforming.transform_inputs(runs)
            with b.loop(b.rounded_up(f['outputs'], f['block'])) as block:
                first = b.mul(block, f['block'])
                count = b.minimum(b.sub(f['outputs'], first), f['block'])
                with b.if_else(transforms) as (by_products, term_by_term):
                    with by_products:
                        self._multiply(runs, values, block, first, count)
                    with term_by_term:
                        self._add_up(runs, values, block, first, count)
                with runs.each_row(first, count) as (_, row):
                    self.storing.store(row, values['bias'])

    def _add_up(
        self, runs: Runs, level: dict[str, ir.Value], block: ir.Value, first: ir.Value, count: ir.Value
    ) -> None:
        """By the level's own code: each part of it for all rows and runs, before the next part is fetched."""
        b, parts = self.b, level['parts']
        kernel = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, I64])
        with b.loop(parts) as part:
            index = b.total((block, parts), part)
            entry, weights = (b.element(level[name], index, POINTER) for name in ('entries', 'weights'))
            with runs.each_row(first, count) as (inputs, row):
                self.storing.ask_for(row, (part, parts))
                source, sums = (b.at(self.scratch, place) for place in (inputs, row.sums))
                b.call(Callee(entry, kernel), [source, weights, sums, row.vectors])

    def _multiply(
        self, runs: Runs, level: dict[str, ir.Value], block: ir.Value, first: ir.Value, count: ir.Value
    ) -> None:
        """By Winograd's convolution: all products of a pack of positions, before the next pack's."""
        b = self.b
        weights = b.element(level['transformed'], block, POINTER)
        packs = self.transforming.packs(runs)
        with b.loop(packs) as pack:
            with runs.each_row(first, count) as (_, row):
                self.storing.ask_for(row, (pack, packs))
            self.transforming.multiply(pack, weights, count)
            self.transforming.transform_back(pack, runs, count)


@cache
def driver(paired: bool) -> Routine:
    """The driver, compiled once for each kind of products."""
    return Routine(Driver(paired))
