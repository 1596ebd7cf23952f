"""Runs of tiles that are computed at one level, as values in the driver's code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from .instructions import PIXELS
from .ir import Builder, i64
from .job import RUN
from .storing import Row


@dataclass(frozen=True)
class Runs:
    """A group's runs on some rows of its strip.

    Attributes:
        b, fields: of the driver.
        strip, group: their records.
        top, rows: of the strip.
    """

    b: Builder
    fields: dict[str, ir.Value]
    strip: dict[str, ir.Value]
    group: dict[str, ir.Value]
    top: ir.Value
    rows: ir.Value

    @property
    def vectors(self) -> ir.Value:
        """Vectors of pixels on each row of all runs."""
        return self.group['vectors']

    @property
    def step(self) -> ir.Value:
        """Floats of the sums of one vector of pixels."""
        return self.b.mul(self.fields['block'], i64(PIXELS))

    @contextmanager
    def each(self) -> Iterator[dict[str, ir.Value]]:
        """Each run."""
        with self.b.loop(self.group['count']) as number:
            yield self.b.record(self.fields['runs'], self.b.add(self.group['first'], number), RUN)

    @contextmanager
    def each_row(self, first: ir.Value, count: ir.Value) -> Iterator[tuple[ir.Value, Row]]:
        """Where the inputs of each row of each run lie in scratch memory, its outputs of one block, and their sums.

        Args:
            first, count: output channels.
        """
        b, f = self.b, self.fields
        with b.loop(b.add(self.top, self.rows), self.top) as down, self.each() as run:
            inputs = b.total((b.mul(down, f['stride']), f['scratch_row']), run['x'])
            sums = b.total(f['sums'], (b.total((down, self.vectors), run['before']), self.step))
            y, x = b.add(self.strip['y'], down), b.add(self.strip['x'], run['x'])
            yield inputs, Row(self.strip['image'], y, x, run['vectors'], first, count, sums)
