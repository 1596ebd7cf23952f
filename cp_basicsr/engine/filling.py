"""Code that copies the inputs of a strip into a thread's scratch memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from .instructions import PIXELS
from .ir import F32, I1, I32, I64, LANES, POINTER, VECTOR, ZEROS, Builder, i64
from .job import PLANE

BITS = ir.IntType(PIXELS)  # a mask of one vector
MOST_VECTORS = 64  # in a row of scratch memory
# Magnitudes as the bits of a float32 without its sign, which are ordered as the numbers are.
PATTERNS = ir.VectorType(I32, PIXELS)
MAGNITUDE = ir.Constant(PATTERNS, [0x7FFFFFFF] * PIXELS)
NO_MAGNITUDE = ir.Constant(PATTERNS, [0] * PIXELS)
# Between 2^-100 and 2^100: sums of a few products with small numbers neither overflow nor lose digits to denormals.
SMALL, LARGE = (127 - 100) << 23, (127 + 100) << 23


@dataclass(frozen=True)
class _Window:
    """What a strip reads of an image: ``rows`` rows from ``top``, and vectors of columns from ``left``."""

    image: ir.Value
    top: ir.Value
    left: ir.Value
    rows: ir.Value
    vectors: ir.Value


class Filling:
    """Writes the code with ``builder``, for a job of ``fields`` and a thread's ``scratch``."""

    def __init__(self, builder: Builder, fields: dict[str, ir.Value], scratch: ir.Value) -> None:
        self.b, self.fields, self.scratch = builder, fields, scratch
        self.masks = builder.alloca(BITS, size=i64(MOST_VECTORS))
        self.largest = builder.alloca(PATTERNS)

    def _window(self, strip: dict[str, ir.Value]) -> _Window:
        b, f = self.b, self.fields
        reach = b.sdiv(b.sub(b.add(f['kernel_columns'], f['stride']), i64(1)), f['stride'])
        rows = b.mul(b.rounded_up(strip['rows'], f['tile_rows']), f['tile_rows'])
        return _Window(
            strip['image'],
            b.sub(b.mul(strip['y'], f['stride']), f['pad_rows']),
            b.sub(b.mul(strip['x'], f['stride']), f['pad_columns']),
            b.total((b.sub(rows, i64(1)), f['stride']), f['kernel_rows']),
            b.add(strip['vectors'], b.sdiv(b.add(reach, i64(PIXELS - 2)), i64(PIXELS))),
        )

    def _plane(self, image: ir.Value, channel: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Address of a channel of an image, and the floats from one of its rows to the next."""
        b, f = self.b, self.fields
        entry = b.at(
            f['planes'], b.total((b.total((image, f['channels']), channel), i64(PLANE.itemsize))), ir.IntType(8)
        )
        return b.element(entry, i64(0), POINTER), b.element(entry, i64(1), I64)

    def fill(self, strip: dict[str, ir.Value]) -> None:
        """Copy a strip's inputs into scratch, zeros where they lie outside of the image."""
        b, f = self.b, self.fields
        window = self._window(strip)
        b.store(NO_MAGNITUDE, self.largest)
        with b.loop(window.vectors) as v:
            first = b.splat(self._given(b.total(window.left, (v, i64(PIXELS)))), LANES)
            lanes = b.add(first, ir.Constant(LANES, list(range(PIXELS))))
            inside = b.icmp_unsigned('<', lanes, b.splat(self._given(f['width']), LANES))
            b.store(b.bitcast(inside, BITS), b.at(self.masks, v, BITS))
        with b.loop(f['channels']) as channel:
            plane, pitch = self._plane(window.image, channel)
            target_plane = b.at(self.scratch, b.mul(channel, f['scratch_plane']))
            with b.loop(window.rows) as row:
                target = b.at(target_plane, b.mul(row, f['scratch_row']))
                y = b.add(window.top, row)
                with b.if_else(b.icmp_unsigned('<', y, f['height'])) as (copy, clear):
                    with copy:
                        source = b.at(plane, b.mul(self._given(y), pitch))
                        with b.if_else(b.icmp_signed('==', f['stride'], i64(1))) as (unit, strided):
                            with unit:
                                self._copy_row(source, target, window)
                            with strided:
                                self._deal_out_row(source, target, window)
                    with clear, b.loop(f['stride']) as phase, b.loop(window.vectors) as v:
                        place = b.total((phase, f['scratch_phase']), (v, i64(PIXELS)))
                        b.put_vector(ZEROS, b.at(target, place))

    def _given(self, place: ir.Value) -> ir.Value:
        """The row or column of the map in memory that stands at a row or column of the inputs."""
        return self.b.ashr(place, self.fields['doubled'])

    def ordinary(self) -> ir.Value:
        """Whether the largest input of the strip (of a layer of stride 1) can be added and multiplied without care.

        False for NaN, infinity and what is close to them, and where there are only denormals.
        """
        b = self.b
        reduce = b.intrinsic(f'llvm.vector.reduce.umax.v{PIXELS}i32', ir.FunctionType(I32, [PATTERNS]))
        largest = b.call(reduce, [b.load(self.largest, typ=PATTERNS)])
        between = b.and_(b.icmp_unsigned('>', largest, I32(SMALL)), b.icmp_unsigned('<', largest, I32(LARGE)))
        return b.or_(between, b.icmp_unsigned('==', largest, I32(0)))

    def _copy_row(self, source: ir.Value, target: ir.Value, window: _Window) -> None:
        """One input row; all vectors by the same instructions: branches would be guessed wrong at the borders."""
        b = self.b
        doubled = b.icmp_signed('!=', self.fields['doubled'], i64(0))
        with b.if_else(doubled) as (twice, once):
            with twice:
                begins_late = b.trunc(window.left, I1)
                self._copy_vectors(source, target, window, lambda values: self._doubled(values, begins_late))
            with once:
                self._copy_vectors(source, target, window, lambda values: values)

    def _doubled(self, values: ir.Value, begins_late: ir.Value) -> ir.Value:
        """Each of the first values twice; the first once, if the vector begins with its second half."""
        early, late = (self.b.picked([values], [(k + more) // 2 for k in range(PIXELS)]) for more in (0, 1))
        return self.b.select(begins_late, late, early)

    def _copy_vectors(
        self, source: ir.Value, target: ir.Value, window: _Window, changed: Callable[[ir.Value], ir.Value]
    ) -> None:
        b = self.b
        with b.loop(window.vectors) as v:
            shift = b.mul(v, i64(PIXELS))
            inside = b.bitcast(b.load(b.at(self.masks, v, BITS), typ=BITS), ir.VectorType(I1, PIXELS))
            first = self._given(b.add(window.left, shift))
            values = changed(self._masked_load(b.at(source, first), inside))
            b.put_vector(values, b.at(target, shift))
            magnitudes = b.and_(b.bitcast(values, PATTERNS), MAGNITUDE)
            largest = b.load(self.largest, typ=PATTERNS)
            b.store(b.select(b.icmp_unsigned('>', magnitudes, largest), magnitudes, largest), self.largest)

    def _deal_out_row(self, source: ir.Value, target: ir.Value, window: _Window) -> None:
        """One input row of a strided layer, its columns dealt out to the phases."""
        b, f = self.b, self.fields
        with b.loop(f['stride']) as phase, b.loop(b.mul(window.vectors, i64(PIXELS))) as step:
            column = b.total(window.left, phase, (step, f['stride']))
            place = b.at(target, b.total((phase, f['scratch_phase']), step))
            with b.if_else(b.icmp_unsigned('<', column, f['width'])) as (copy, clear):
                with copy:
                    b.store(b.element(source, self._given(column)), place)
                with clear:
                    b.store(ir.Constant(F32, 0.0), place)

    def _masked_load(self, pointer: ir.Value, lanes: ir.Value) -> ir.Value:
        name = f'llvm.masked.load.v{PIXELS}f32.p0'
        kind = ir.FunctionType(VECTOR, [POINTER, I32, lanes.type, VECTOR])
        return self.b.call(self.b.intrinsic(name, kind), [pointer, ir.Constant(I32, 4), lanes, ZEROS])
