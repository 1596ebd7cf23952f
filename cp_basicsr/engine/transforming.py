"""Code that computes what of a strip runs at one level by Winograd's convolution."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from .instructions import PIXELS
from .ir import I64, VECTOR, ZEROS, Builder, i64
from .runs import Runs
from .vector_math import constant, fused
from .winograd import (
    COLUMN_INPUTS,
    COLUMN_OUTPUTS,
    IN_COLUMNS,
    IN_ROWS,
    PRODUCTS,
    ROW_INPUTS,
    ROW_OUTPUTS,
    TILE_COLUMNS,
    TILE_ROWS,
    WIDTHS,
)

MOST_POSITIONS = 64  # vectors of outputs, times rows of tiles, that are transformed at once
TILES = PIXELS // TILE_COLUMNS  # that one vector of outputs holds; two vectors of outputs fill one of tiles


class Transforming:
    """Writes the code with ``builder``, for a job of ``fields`` and a thread's ``scratch``."""

    def __init__(self, builder: Builder, fields: dict[str, ir.Value], scratch: ir.Value) -> None:
        self.b, self.fields, self.scratch = builder, fields, scratch
        self.sources = builder.alloca(I64, size=i64(MOST_POSITIONS))
        self.targets = builder.alloca(I64, size=i64(MOST_POSITIONS))

    def rows_at_once(self, strip: dict[str, ir.Value], group: dict[str, ir.Value]) -> ir.Value:
        """All rows of a group if there is room for their transforms, else one row of tiles."""
        b = self.b
        positions = b.mul(b.rounded_up(strip['rows'], i64(TILE_ROWS)), group['vectors'])
        fits = b.icmp_signed('<=', positions, b.mul(self.fields['transformed_pairs'], i64(2)))
        return b.select(fits, strip['rows'], i64(TILE_ROWS))

    def pairs(self, runs: Runs) -> ir.Value:
        """Pairs of positions; a position is a vector of outputs on :data:`~cp_basicsr.engine.winograd.TILE_ROWS` rows.

        Two of them fill vectors of tiles.
        """
        return self.b.rounded_up(self._positions(runs), i64(2))

    def _positions(self, runs: Runs) -> ir.Value:
        return self.b.mul(self.b.rounded_up(runs.rows, i64(TILE_ROWS)), runs.vectors)

    def transform_inputs(self, runs: Runs) -> None:
        """Transform the inputs of all positions: ``[pair, product, channel, tile]``."""
        b, f = self.b, self.fields
        self._find_positions(runs)
        with b.loop(self.pairs(runs)) as pair:
            places = self._of_pair(self.sources, pair)
            with b.loop(f['channels']) as channel:
                plane = b.at(self.scratch, b.mul(channel, f['scratch_plane']))
                sources = [b.at(plane, place) for place in places]
                rows = [self._columns_of_row(sources, row) for row in range(IN_ROWS)]
                for column in range(IN_COLUMNS):
                    values = _combined(b, ROW_INPUTS, [row[column] for row in rows])
                    for row, value in enumerate(values):
                        product = i64(row * IN_COLUMNS + column)
                        b.store(value, b.at(self._inputs(pair, product), b.mul(channel, i64(PIXELS))), align=64)

    def _find_positions(self, runs: Runs) -> None:
        """Where the inputs of each position lie in scratch memory, and the number of its first row's vector of sums."""
        b, f = self.b, self.fields
        with b.loop(b.rounded_up(runs.rows, i64(TILE_ROWS))) as down, runs.each() as run:
            row = b.total(runs.top, (down, i64(TILE_ROWS)))
            source = b.total((row, f['scratch_row']), run['x'])
            target = b.total((row, runs.vectors), run['before'])
            before = b.total((down, runs.vectors), run['before'])
            with b.loop(run['vectors']) as vector:
                position = b.add(before, vector)
                b.store(b.total(source, (vector, i64(PIXELS))), b.at(self.sources, position, I64))
                b.store(b.add(target, vector), b.at(self.targets, position, I64))
        # The partner of an odd one is itself.
        positions = self._positions(runs)
        for table in (self.sources, self.targets):
            last = b.element(table, b.sub(positions, i64(1)), I64)
            b.store(last, b.at(table, positions, I64))

    def _of_pair(self, table: ir.Value, pair: ir.Value) -> list[ir.Value]:
        b = self.b
        return [b.element(table, b.total((pair, i64(2)), i64(half)), I64) for half in (0, 1)]

    def _columns_of_row(self, sources: list[ir.Value], row: int) -> list[ir.Value]:
        """One input row of two positions: transformed columns, a tile in each lane."""
        b = self.b
        shift = b.mul(self.fields['scratch_row'], i64(row))
        columns = []
        for left in range(0, IN_COLUMNS, TILE_COLUMNS):
            first, second = (b.vector(b.at(source, b.add(shift, i64(left))), VECTOR) for source in sources)
            columns += [b.picked(first, second, range(k, 2 * PIXELS, TILE_COLUMNS)) for k in range(TILE_COLUMNS)]
        return _combined(b, COLUMN_INPUTS, columns)

    def _inputs(self, pair: ir.Value, product: ir.Value) -> ir.Value:
        b, f = self.b, self.fields
        index = b.total((pair, i64(PRODUCTS)), product)
        return b.at(self.scratch, b.total(f['transformed'], (index, f['transformed_step'])))

    def multiply(self, pair: ir.Value, weights: ir.Value, count: ir.Value) -> None:
        """The products of one pair of positions, summed over the channels: ``[product, width, tile]``.

        Args:
            pair: its number.
            weights: of a block of outputs, ``[product, channel, width]``.
            count: outputs of the block.
        """
        b, f = self.b, self.fields
        width = self._width(count)
        after = b.append_basic_block('multiplied')
        cases = b.switch(width, after)
        for some in WIDTHS:
            case = b.append_basic_block(f'width{some}')
            b.position_at_end(case)
            cases.add_case(i64(some), case)
            with b.loop(i64(PRODUCTS)) as product:
                values = b.at(weights, b.mul(b.mul(product, f['channels']), i64(some)))
                target = b.at(self._products(), b.mul(product, i64(some * PIXELS)))
                for output, value in enumerate(self._summed(self._inputs(pair, product), values, some)):
                    b.store(value, b.at(target, i64(output * PIXELS)), align=64)
            b.branch(after)
        b.position_at_end(after)

    def _width(self, count: ir.Value) -> ir.Value:
        """Outputs that are computed for a block of ``count``."""
        b, step = self.b, i64(WIDTHS[0])
        return b.mul(b.rounded_up(count, step), step)

    def _summed(self, inputs: ir.Value, weights: ir.Value, width: int) -> list[ir.Value]:
        """Sums over the channels, in registers."""
        b = self.b
        before = b.block
        body, after = (b.append_basic_block(name) for name in ('multiply', 'summed'))
        b.branch(body)
        b.position_at_end(body)
        channel = b.phi(I64)
        channel.add_incoming(i64(0), before)
        sums = [b.phi(VECTOR) for _ in range(width)]
        x = b.load(b.at(inputs, b.mul(channel, i64(PIXELS))), typ=VECTOR, align=64)
        place = b.at(weights, b.mul(channel, i64(width)))
        added = [fused(b, x, b.splat(b.element(place, i64(k)), VECTOR), total) for k, total in enumerate(sums)]
        for total, value in zip(sums, added, strict=True):
            total.add_incoming(ZEROS, before)
            total.add_incoming(value, body)
        following = b.add(channel, i64(1))
        channel.add_incoming(following, body)
        b.cbranch(b.icmp_signed('<', following, self.fields['channels']), body, after)
        b.position_at_end(after)
        return added

    def _products(self) -> ir.Value:
        return self.b.at(self.scratch, self.fields['products'])

    def transform_back(self, pair: ir.Value, runs: Runs, count: ir.Value) -> None:
        """The products of one pair of positions become sums: ``[row, vector, output]``.

        Args:
            pair: its number.
            runs: that it is of.
            count: outputs of the block.
        """
        b, f = self.b, self.fields
        width = self._width(count)
        targets = [b.total(f['sums'], (place, runs.step)) for place in self._of_pair(self.targets, pair)]
        with b.loop(count) as output:
            source = b.at(self._products(), b.mul(output, i64(PIXELS)))
            columns = []
            for column in range(IN_COLUMNS):
                places = (b.mul(width, i64(PIXELS * (row * IN_COLUMNS + column))) for row in range(IN_ROWS))
                products = [b.load(b.at(source, place), typ=VECTOR, align=64) for place in places]
                columns.append(_combined(b, ROW_OUTPUTS, products))
            for row in range(TILE_ROWS):
                values = _combined(b, COLUMN_OUTPUTS, [column[row] for column in columns])
                shift = b.total((b.mul(runs.vectors, i64(row)), runs.step), (output, i64(PIXELS)))
                for half, target in enumerate(targets):
                    lanes = [half * TILES + k // TILE_COLUMNS + k % TILE_COLUMNS * PIXELS for k in range(PIXELS)]
                    value = b.picked(*values, lanes)
                    b.store(value, b.at(self.scratch, b.add(target, shift)), align=64)


def _combined(b: Builder, matrix: np.ndarray, values: list[ir.Value]) -> list[ir.Value]:
    """Product of a constant matrix and a column of vectors."""
    return [_weighted_sum(b, row, values) for row in matrix.tolist()]


def _weighted_sum(b: Builder, factors: list[float], values: list[ir.Value]) -> ir.Value:
    # A term of factor 1 comes first: it needs no instruction.
    terms = sorted((term for term in zip(factors, values, strict=True) if term[0]), key=lambda term: term[0] != 1)
    factor, total = terms[0]
    if factor != 1:
        total = b.fmul(total, constant(factor))
    for factor, value in terms[1:]:
        if abs(factor) == 1:
            total = b.fadd(total, value) if factor > 0 else b.fsub(total, value)
        else:
            total = fused(b, value, constant(factor), total)
    return total
