"""Contrast of an image's tiles, summed up in one pass over the pixels, as compiled code.

In PyTorch each filtered picture goes through memory five times; here rows are filtered and summed up while they are in
the cache.
"""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import product

import torch
from llvmlite import ir
from torch import Tensor

from . import threads
from .instructions import PIXELS
from .ir import F32, I1, I32, POINTER, VECTOR, ZEROS, i64
from .job import map_fields, map_values
from .native import Routine, RoutineSource
from .vector_math import constant, fused, larger

Filter = tuple[tuple[int, ...], ...]  # three rows of three weights

AXES = ('rows', 'columns')
LARGEST = 32  # pixels along a side that are summed up in float32 before their sums are rounded to it
LANES = ir.VectorType(I32, PIXELS)
MASK = ir.VectorType(I1, PIXELS)


class _Job(ctypes.Structure):
    """Strides in floats. Pieces of work are rows of blocks: each tile is cut into as many, ``parts``, along each axis.

    Along each axis: pixels of the image, of a tile and of a block; blocks of a tile and of the image. ``pitch`` is from
    row to row in scratch memory, where a plane takes ``plane``. ``means`` and ``maxima`` are ``[images, values, rows of
    blocks, columns of blocks]``.
    """

    _fields_ = [
        *map_fields('input'),
        ('channels', ctypes.c_int64),
        *((f'{axis}{of}', ctypes.c_int64) for axis in AXES for of in ('', '_tile', '_block', '_parts', '_blocks')),
        ('pitch', ctypes.c_int64),
        ('plane', ctypes.c_int64),
        ('gain', ctypes.c_float),
        ('means', ctypes.c_void_p),
        ('maxima', ctypes.c_void_p),
        ('count', ctypes.c_int64),
        ('following', ctypes.c_int64),
    ]


class _Extent:
    """Pixels from ``first`` up to ``last`` (exclusive) of a block along an axis; none beyond the image's border.

    Attributes:
        tile: pixels of its tile along the axis.
    """

    def __init__(self, source: _Source, axis: str, block: ir.Value) -> None:
        b, f = source.b, source.fields
        parts, size = f[f'{axis}_parts'], f[f'{axis}_tile']
        start = b.mul(b.sdiv(block, parts), size)
        end = b.minimum(b.add(start, size), f[axis])
        self.tile = b.sub(end, start)
        self.first = b.total(start, (b.srem(block, parts), f[f'{axis}_block']))
        self.last = b.minimum(b.add(self.first, f[f'{axis}_block']), end)


class _Source(RoutineSource):
    """Scratch memory holds planes of the rows that a piece needs: gray, then smoothed for each spread above 1.

    Rows have :data:`PIXELS` floats of border on either side. Where the image ends, borders and rows repeat its last
    pixels.
    """

    def __init__(self, filters: tuple[Filter, ...], spreads: tuple[int, ...]) -> None:
        self.filters, self.spreads, self.beyond = filters, spreads, max(spreads)
        super().__init__(_Job, 'count', 'following')

    def prepare(self) -> None:
        self.brightness = self.b.alloca(VECTOR)
        self.sums = [[self.b.alloca(VECTOR) for _ in self.filters] for _ in ('magnitude', 'square', 'maximum')]

    def work(self, piece: ir.Value) -> None:
        b, f = self.b, self.fields
        image, block = b.sdiv(piece, f['rows_blocks']), b.srem(piece, f['rows_blocks'])
        rows = _Extent(self, 'rows', block)
        height = b.sub(rows.last, rows.first)
        top = b.sub(rows.first, i64(self.beyond))  # the image's row that the planes begin with
        with b.if_then(b.icmp_signed('>', height, i64(0))):
            self._make_gray(image, top, height)
            for plane, spread in enumerate(self._smoothed, 1):
                self._smooth(plane, spread, top, height)
        with b.loop(f['columns_blocks']) as column:
            columns = _Extent(self, 'columns', column)
            pixels = b.sitofp(b.mul(rows.tile, columns.tile), F32)
            share = b.fdiv(ir.Constant(F32, 1.0), pixels)
            place = b.total((block, f['columns_blocks']), column)
            for index, spread in enumerate(self.spreads):
                self._add_up(spread, height, columns, with_brightness=not index)
                self._write(image, place, index, share)

    @property
    def _smoothed(self) -> list[int]:
        return [spread for spread in self.spreads if spread > 1]

    def _row(self, plane: int, row: ir.Value) -> ir.Value:
        """Address of the first pixel of a row in scratch memory."""
        b, f = self.b, self.fields
        return b.at(self.scratch, b.total(i64(PIXELS), (i64(plane), f['plane']), (row, f['pitch'])))

    def _inside(self, row: ir.Value) -> ir.Value:
        """The row, or the image's nearest."""
        b = self.b
        return b.maximum(b.minimum(row, b.sub(self.fields['rows'], i64(1))), i64(0))

    def _vectors(self, first: ir.Value, last: ir.Value) -> ir.Value:
        b = self.b
        return b.rounded_up(b.maximum(b.sub(last, first), i64(0)), i64(PIXELS))

    def _lanes_before(self, first: ir.Value, last: ir.Value) -> ir.Value:
        """Which of the pixels from ``first`` on stand before ``last``."""
        b = self.b
        left = b.splat(b.trunc(b.sub(last, first), I32), LANES)
        return b.icmp_signed('<', ir.Constant(LANES, list(range(PIXELS))), left)

    def _make_gray(self, image: ir.Value, top: ir.Value, height: ir.Value) -> None:
        """Mean of the channels, times the gain."""
        b, f = self.b, self.fields
        kind = ir.FunctionType(VECTOR, [POINTER, I32, MASK, VECTOR])
        masked_load = b.intrinsic(f'llvm.masked.load.v{PIXELS}f32.p0', kind)
        factor = b.splat(b.fdiv(f['gain'], b.sitofp(f['channels'], F32)), VECTOR)
        alignment = I32(ctypes.sizeof(ctypes.c_float))
        with b.loop(b.add(height, i64(3 * self.beyond - 1))) as row:
            source = b.total((image, f['input_image']), (self._inside(b.add(top, row)), f['input_row']))
            target = self._row(0, row)
            with b.loop(self._vectors(i64(0), f['columns'])) as vector:
                x = b.mul(vector, i64(PIXELS))
                inside = self._lanes_before(x, f['columns'])
                b.store(ZEROS, self.brightness)
                with b.loop(f['channels']) as channel:
                    place = b.at(f['input'], b.total(source, x, (channel, f['input_channel'])))
                    value = b.call(masked_load, [place, alignment, inside, ZEROS])
                    b.store(b.fadd(b.load(self.brightness, typ=VECTOR), value), self.brightness)
                b.put_vector(b.fmul(b.load(self.brightness, typ=VECTOR), factor), b.at(target, x))
            self._repeat_borders(target)

    def _smooth(self, plane: int, spread: int, top: ir.Value, height: ir.Value) -> None:
        """Mean of ``spread`` x ``spread`` pixels, of which each is the upper left."""
        b, f = self.b, self.fields
        with b.loop(b.add(height, i64(2 * self.beyond))) as row:
            first = b.sub(self._inside(b.add(top, row)), top)
            sources = [self._row(0, b.add(first, i64(down))) for down in range(spread)]
            target = self._row(plane, row)
            with b.loop(self._vectors(i64(0), f['columns'])) as vector:
                x = b.mul(vector, i64(PIXELS))
                total = ZEROS
                for source, right in product(sources, range(spread)):
                    total = b.fadd(total, b.vector(b.at(source, b.add(x, i64(right))), VECTOR))
                b.put_vector(b.fmul(total, constant(1 / spread**2)), b.at(target, x))
            self._repeat_borders(target)

    def _repeat_borders(self, row: ir.Value) -> None:
        b, columns = self.b, self.fields['columns']
        b.put_vector(b.splat(b.element(row, i64(0), F32), VECTOR), b.at(row, i64(-PIXELS)))
        b.put_vector(b.splat(b.element(row, b.sub(columns, i64(1)), F32), VECTOR), b.at(row, columns))

    def _add_up(self, spread: int, height: ir.Value, columns: _Extent, with_brightness: bool) -> None:
        """Sums of a block for each lane."""
        b = self.b
        plane = 1 + self._smoothed.index(spread) if spread > 1 else 0
        for total in (self.brightness, *sum(self.sums, [])):
            b.store(ZEROS, total)
        with b.loop(height) as y, b.loop(self._vectors(columns.first, columns.last)) as vector:
            x = b.add(columns.first, b.mul(vector, i64(PIXELS)))
            inside = self._lanes_before(x, columns.last)
            if with_brightness:
                gray = b.vector(b.at(self._row(0, b.add(y, i64(self.beyond))), x), VECTOR)
                total = b.fadd(b.load(self.brightness, typ=VECTOR), b.select(inside, gray, ZEROS))
                b.store(total, self.brightness)
            rows = [self._row(plane, b.add(y, i64(self.beyond + down * spread))) for down in (-1, 0, 1)]
            taps = [b.vector(b.at(row, b.add(x, i64(right * spread))), VECTOR) for row in rows for right in (-1, 0, 1)]
            for weights, *variables in zip(self.filters, *self.sums, strict=True):
                contrast = b.select(inside, self._magnitude(weights, taps), ZEROS)
                magnitude, square, maximum = (b.load(variable, typ=VECTOR) for variable in variables)
                totals = b.fadd(magnitude, contrast), fused(b, contrast, contrast, square), larger(b, contrast, maximum)
                for total, variable in zip(totals, variables, strict=True):
                    b.store(total, variable)

    def _magnitude(self, weights: Filter, taps: list[ir.Value]) -> ir.Value:
        """What a filter gives, without its sign."""
        b, total = self.b, None
        for weight, tap in zip(sum(weights, ()), taps, strict=True):
            if weight:
                total = b.fmul(tap, constant(weight)) if total is None else fused(b, tap, constant(weight), total)
        absolute = b.intrinsic(f'llvm.fabs.v{PIXELS}f32', ir.FunctionType(VECTOR, [VECTOR]))
        return b.call(absolute, [total])

    def _write(self, image: ir.Value, place: ir.Value, index: int, share: ir.Value) -> None:
        """Sums over the lanes of what :meth:`_add_up` leaves for the spread of this index."""
        b, f = self.b, self.fields
        blocks = b.mul(f['rows_blocks'], f['columns_blocks'])
        each = len(self.spreads) * len(self.filters)

        def put(value: ir.Value, name: str, number: int, of: int) -> None:
            b.store(value, b.at(f[name], b.total((b.total((image, i64(of)), i64(number)), blocks), place)))

        add = b.intrinsic(f'llvm.vector.reduce.fadd.v{PIXELS}f32', ir.FunctionType(F32, [F32, VECTOR]))
        largest = b.intrinsic(f'llvm.vector.reduce.fmax.v{PIXELS}f32', ir.FunctionType(F32, [VECTOR]))
        magnitudes, squares, maxima = self.sums
        means = [(0, self.brightness)] if not index else []
        for number, (magnitude, square) in enumerate(zip(magnitudes, squares, strict=True), index * len(self.filters)):
            means += [(1 + number, magnitude), (1 + each + number, square)]
        for number, total in means:
            value = b.call(add, [ir.Constant(F32, 0.0), b.load(total, typ=VECTOR)], fastmath=['reassoc'])
            put(b.fmul(value, share), 'means', number, 1 + 2 * each)
        for number, total in enumerate(maxima, index * len(self.filters)):
            put(b.call(largest, [b.load(total, typ=VECTOR)], fastmath=['nnan']), 'maxima', number, each)


@cache
def _routine(filters: tuple[Filter, ...], spreads: tuple[int, ...]) -> Routine:
    return Routine(_Source(filters, spreads))


def tile_statistics(
    x: Tensor, tile: int | None, gain: float, filters: tuple[Filter, ...], spreads: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Brightness and local contrast of tiles; those at the lower and right border may be cut.

    Brightness is ``gain`` times the mean of the channels. For each spread it is smoothed by the mean of ``spread`` x
    ``spread`` pixels and filtered with taps that many pixels apart, borders repeated; contrast is the magnitude.

    Args:
        x: float32 ``[B, C, H, W]``.
        tile: side of a tile in pixels; None: the whole image.
        gain: factor.
        filters: 3 x 3 weights; one that has no zeros lets no NaN or infinity of a pixel or its neighbours be missed.
        spreads: from 1 to :data:`~cp_basicsr.engine.instructions.PIXELS`.

    Returns:
        Means ``[B, 1 + 2 * n, rows, columns]`` of the brightness, of the ``n = len(spreads) * len(filters)`` contrasts,
        spread by spread, and of their squares; maxima ``[B, n, rows, columns]`` of the contrasts, NaN left out.

    Raises:
        EngineUnavailableError: the system gives no executable memory.
    """
    x = x if x.stride(3) == 1 else x.contiguous()
    images, channels, *size = x.shape
    each, beyond, fields = len(spreads) * len(filters), max(spreads), {}
    for axis, pixels in zip(AXES, size, strict=True):
        side = min(tile or pixels, pixels)
        parts = -(-side // LARGEST)
        fields |= {axis: pixels, f'{axis}_tile': side, f'{axis}_block': -(-side // parts), f'{axis}_parts': parts}
        fields[f'{axis}_blocks'] = -(-pixels // side) * parts
    blocks = [fields[f'{axis}_blocks'] for axis in AXES]
    means, maxima = x.new_empty((images, 1 + 2 * each, *blocks)), x.new_empty((images, each, *blocks))
    # Borders, the last vector of a row and its right neighbours; odd, lest rows fall on few sets of the cache.
    pitch = (-(-(size[1] + 3 * PIXELS + beyond) // PIXELS) | 1) * PIXELS
    plane = (fields['rows_block'] + 3 * beyond - 1) * pitch
    job = _Job(
        **map_values('input', x),
        **fields,
        channels=channels,
        pitch=pitch,
        plane=plane,
        gain=gain,
        means=means.data_ptr(),
        maxima=maxima.data_ptr(),
        count=images * blocks[0],
    )
    planes = 1 + sum(spread > 1 for spread in spreads)
    threads.run(_routine(filters, spreads), job, job.count, planes * plane)
    if fields['rows_parts'] == fields['columns_parts'] == 1:
        return means, maxima
    cut = [(-1, fields[f'{axis}_parts']) for axis in AXES]
    means, maxima = (values.unflatten(3, cut[1]).unflatten(2, cut[0]) for values in (means, maxima))
    return means.sum(dim=(3, 5), dtype=torch.float64).float(), maxima.amax(dim=(3, 5))
