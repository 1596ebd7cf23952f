"""Code that computes what of a strip runs at one level by Winograd's convolution."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from llvmlite import ir

from .instructions import PIXELS
from .ir import I64, VECTOR, ZEROS, Builder, i64
from .runs import Runs
from .vector_math import constant, fused
from .winograd import FAR, INPUTS, NEAR, OUTPUTS, PRODUCTS, SIDE, TILE_COLUMNS, TILE_ROWS, WIDTHS

MOST_POSITIONS = 32  # in a strip, and room to fill up the last pack
TILES = PIXELS // TILE_COLUMNS  # that one vector of outputs holds


class Transforming:
    """Writes the code with ``builder``, for a job of ``fields`` and a thread's ``scratch``.

    A position is a vector of outputs on as many rows as a tile has. A pack is so many positions, wherever they are in
    the strip, as a tile has columns: together they fill vectors with a tile in each lane. The products of a tile are
    sums of terms; here there is one for each input channel, and it is a float32.
    """

    term = VECTOR  # of the inputs

    def __init__(self, builder: Builder, fields: dict[str, ir.Value], scratch: ir.Value) -> None:
        self.b, self.fields, self.scratch = builder, fields, scratch
        self.sources = builder.alloca(I64, size=i64(MOST_POSITIONS))
        self.targets = builder.alloca(I64, size=i64(MOST_POSITIONS))

    def rows_at_once(self, strip: dict[str, ir.Value], group: dict[str, ir.Value]) -> ir.Value:
        """As many rows of a group as there is room for their transforms; at least one row of tiles."""
        b = self.b
        fit = b.sdiv(b.mul(self.fields['transformed_packs'], i64(TILE_COLUMNS)), group['vectors'])
        return b.minimum(strip['rows'], b.mul(i64(TILE_ROWS), b.maximum(fit, i64(1))))

    def packs(self, runs: Runs) -> ir.Value:
        """Packs of all positions."""
        return self.b.rounded_up(self._positions(runs), i64(TILE_COLUMNS))

    def _positions(self, runs: Runs) -> ir.Value:
        return self.b.mul(self.b.rounded_up(runs.rows, i64(TILE_ROWS)), runs.vectors)

    def transform_inputs(self, runs: Runs) -> None:
        """Transform the inputs of all positions: ``[pack, product, term, tile]``."""
        b = self.b
        self._find_positions(runs)
        with b.loop(self.packs(runs)) as pack:
            places = self._of_pack(self.sources, pack)
            with b.loop(self.fields['terms']) as term:
                self._put_term(pack, term, places)

    def _put_term(self, pack: ir.Value, term: ir.Value, places: list[ir.Value]) -> None:
        """Transform and store one term of a pack whose inputs are at these places of each channel."""
        for product, value in self._transformed(term, places):
            self.b.store(value, self._term(pack, product, term), align=64)

    def _transformed(self, channel: ir.Value, places: list[ir.Value]) -> Iterator[tuple[int, ir.Value]]:
        """Each product's number and transformed inputs of a channel."""
        b = self.b
        plane = b.at(self.scratch, b.mul(channel, self.fields['scratch_plane']))
        sources = [b.at(plane, place) for place in places]
        rows = [self._columns_of_row(sources, row) for row in range(SIDE)]
        for column in range(SIDE):
            for row, value in enumerate(_transformed_inputs(b, [row[column] for row in rows])):
                yield row * SIDE + column, value

    def _term(self, pack: ir.Value, product: int, term: ir.Value) -> ir.Value:
        return self.b.at(self._inputs(pack, i64(product)), self.b.mul(term, i64(PIXELS)))

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
        # The last stands in for those that the last pack lacks.
        positions = self._positions(runs)
        for table in (self.sources, self.targets):
            last = b.element(table, b.sub(positions, i64(1)), I64)
            for k in range(TILE_COLUMNS - 1):
                b.store(last, b.at(table, b.add(positions, i64(k)), I64))

    def _of_pack(self, table: ir.Value, pack: ir.Value) -> list[ir.Value]:
        b = self.b
        return [b.element(table, b.total((pack, i64(TILE_COLUMNS)), i64(k)), I64) for k in range(TILE_COLUMNS)]

    def _columns_of_row(self, sources: list[ir.Value], row: int) -> list[ir.Value]:
        """One input row of a pack: transformed columns, a tile in each lane."""
        b = self.b
        shift = b.mul(self.fields['scratch_row'], i64(row))
        columns = []
        for left in range(0, SIDE, TILE_COLUMNS):
            read = [b.vector(b.at(source, b.add(shift, i64(left))), VECTOR) for source in sources]
            some = min(TILE_COLUMNS, SIDE - left)
            columns += [b.picked(read, range(k, TILE_COLUMNS * PIXELS, TILE_COLUMNS)) for k in range(some)]
        return _transformed_inputs(b, columns)

    def _inputs(self, pack: ir.Value, product: ir.Value) -> ir.Value:
        b, f = self.b, self.fields
        index = b.total((pack, i64(PRODUCTS)), product)
        return b.at(self.scratch, b.total(f['transformed'], (index, f['transformed_step'])))

    def multiply(self, pack: ir.Value, weights: ir.Value, count: ir.Value) -> None:
        """The products of one pack of positions, summed over their terms: ``[product, width, tile]``.

        Args:
            pack: its number.
            weights: of a block of outputs, ``[product, term, width]``.
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
                values = b.at(weights, b.mul(b.mul(product, f['terms']), i64(some)))
                target = b.at(self._products(), b.mul(product, i64(some * PIXELS)))
                for output, value in enumerate(self._summed(self._inputs(pack, product), values, some)):
                    b.store(value, b.at(target, i64(output * PIXELS)), align=64)
            b.branch(after)
        b.position_at_end(after)

    def _width(self, count: ir.Value) -> ir.Value:
        """Outputs that are computed for a block of ``count``."""
        b = self.b
        width = i64(WIDTHS[-1])
        for some in reversed(WIDTHS[:-1]):
            width = b.select(b.icmp_signed('<=', count, i64(some)), i64(some), width)
        return width

    def _summed(self, inputs: ir.Value, weights: ir.Value, width: int) -> list[ir.Value]:
        """Sums over the terms, in registers."""
        b = self.b
        before = b.block
        body, after = (b.append_basic_block(name) for name in ('multiply', 'summed'))
        b.branch(body)
        b.position_at_end(body)
        term = b.phi(I64)
        term.add_incoming(i64(0), before)
        sums = [b.phi(VECTOR) for _ in range(width)]
        x = b.load(b.at(inputs, b.mul(term, i64(PIXELS))), typ=self.term, align=64)
        place = b.at(weights, b.mul(term, i64(width)))
        own = (b.element(place, i64(k), self.term.element) for k in range(width))
        added = [self._added(total, x, b.splat(weight, self.term)) for total, weight in zip(sums, own, strict=True)]
        for total, value in zip(sums, added, strict=True):
            total.add_incoming(ZEROS, before)
            total.add_incoming(value, body)
        following = b.add(term, i64(1))
        term.add_incoming(following, body)
        b.cbranch(b.icmp_signed('<', following, self.fields['terms']), body, after)
        b.position_at_end(after)
        return added

    def _added(self, total: ir.Value, inputs: ir.Value, weight: ir.Value) -> ir.Value:
        """A sum and one more term of it."""
        return fused(self.b, inputs, weight, total)

    def _products(self) -> ir.Value:
        return self.b.at(self.scratch, self.fields['products'])

    def transform_back(self, pack: ir.Value, runs: Runs, count: ir.Value) -> None:
        """The products of one pack of positions become sums: ``[row, vector, output]``.

        Args:
            pack: its number.
            runs: that it is of.
            count: outputs of the block.
        """
        b, f = self.b, self.fields
        width = self._width(count)
        targets = [b.total(f['sums'], (place, runs.step)) for place in self._of_pack(self.targets, pack)]
        with b.loop(count) as output:
            source = b.at(self._products(), b.mul(output, i64(PIXELS)))
            columns = []
            for column in range(SIDE):
                places = (b.mul(width, i64(PIXELS * (row * SIDE + column))) for row in range(SIDE))
                products = [b.load(b.at(source, place), typ=VECTOR, align=64) for place in places]
                columns.append(_transformed_outputs(b, products))
            for row in range(TILE_ROWS):
                values = _transformed_outputs(b, [column[row] for column in columns])
                shift = b.total((b.mul(runs.vectors, i64(row)), runs.step), (output, i64(PIXELS)))
                for number, target in enumerate(targets):
                    lanes = [number * TILES + k // TILE_COLUMNS + k % TILE_COLUMNS * PIXELS for k in range(PIXELS)]
                    value = b.picked(values, lanes)
                    b.store(value, b.at(self.scratch, b.add(target, shift)), align=64)


def _transformed_inputs(b: Builder, values: list[ir.Value]) -> list[ir.Value]:
    """``INPUTS @ values``. Rows of opposite points differ in the sign of their odd terms, which are added up apart."""
    odd = np.arange(SIDE) % 2
    rows = [_weighted_sum(b, INPUTS[0], values)]
    for index, point in ((1, float(NEAR)), (3, float(FAR))):
        same = _weighted_sum(b, INPUTS[index] * (1 - odd), values)
        opposite = _weighted_sum(b, INPUTS[index] * odd / point, values)
        rows += [fused(b, opposite, constant(sign * point), same) for sign in (1, -1)]
    return [*rows, _weighted_sum(b, INPUTS[-1], values)]


def _transformed_outputs(b: Builder, values: list[ir.Value]) -> list[ir.Value]:
    """``OUTPUTS @ values``. Even powers of opposite points are equal, so sums and differences are made once."""
    first, near, opposite_near, far, opposite_far, last = values
    columns = OUTPUTS.T
    terms = [(first, columns[0]), (last, columns[-1])]
    for plus, minus, index in ((near, opposite_near, 1), (far, opposite_far, 3)):
        terms.append((b.fadd(plus, minus), (columns[index] + columns[index + 1]) / 2))
        terms.append((b.fsub(plus, minus), (columns[index] - columns[index + 1]) / 2))
    folded, factors = zip(*terms, strict=True)
    return [_weighted_sum(b, row, list(folded)) for row in np.transpose(factors)]


def _weighted_sum(b: Builder, factors: np.ndarray, values: list[ir.Value]) -> ir.Value:
    # A term of factor 1 comes first: it needs no instruction.
    terms = sorted(
        (term for term in zip(factors.tolist(), values, strict=True) if term[0]), key=lambda term: term[0] != 1
    )
    factor, total = terms[0]
    if factor != 1:
        total = b.fmul(total, constant(factor))
    for factor, value in terms[1:]:
        if abs(factor) == 1:
            total = b.fadd(total, value) if factor > 0 else b.fsub(total, value)
        else:
            total = fused(b, value, constant(factor), total)
    return total
