"""A little structure over llvmlite's IR builder: loops, and fields of ctypes structures and NumPy records."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from llvmlite import ir

from .instructions import PIXELS

I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()
VECTOR = ir.VectorType(F32, PIXELS)
LANES = ir.VectorType(I64, PIXELS)
ZEROS = ir.Constant(VECTOR, [0.0] * PIXELS)
_CTYPES = {
    ctypes.c_void_p: POINTER,
    ctypes.c_int64: I64,
    ctypes.c_int32: I32,
    ctypes.c_float: F32,
}


def i64(value: int) -> ir.Constant:
    """A 64-bit constant."""
    return ir.Constant(I64, value)


class Builder(ir.IRBuilder):
    """An IR builder with the few shapes of code that the driver needs."""

    @contextmanager
    def loop(self, count: ir.Value, start: ir.Value | None = None) -> Iterator[ir.Value]:
        """Run the body for ``start`` (0) up to ``count`` (exclusive); gives the 64-bit index."""
        before = self.block
        head, body, after = (self.append_basic_block(name) for name in ('loop', 'body', 'after'))
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        index.add_incoming(start or i64(0), before)
        self.cbranch(self.icmp_signed('<', index, count), body, after)
        self.position_at_end(body)
        yield index
        index.add_incoming(self.add(index, i64(1)), self.block)
        self.branch(head)
        self.position_at_end(after)

    def total(self, *terms: ir.Value | tuple[ir.Value, ir.Value]) -> ir.Value:
        """Sum of values and of products of two."""
        result = None
        for term in terms:
            value = self.mul(*term) if isinstance(term, tuple) else term
            result = value if result is None else self.add(result, value)
        return result

    def minimum(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """The smaller of two signed integers."""
        return self.select(self.icmp_signed('<', first, second), first, second)

    def maximum(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """The larger of two signed integers."""
        return self.select(self.icmp_signed('>', first, second), first, second)

    def rounded_up(self, value: ir.Value, divisor: ir.Value) -> ir.Value:
        """A quotient of integers that are not negative, rounded up."""
        return self.sdiv(self.sub(self.add(value, divisor), i64(1)), divisor)

    def intrinsic(self, name: str, kind: ir.FunctionType) -> ir.Function:
        """One of LLVM's own functions."""
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    def prefetch(self, pointer: ir.Value, write: bool) -> None:
        """Ask for a cache line, to read or to ``write`` it."""
        kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        nearest, data = 3, 1
        self.call(self.intrinsic('llvm.prefetch.p0', kind), [pointer, I32(int(write)), I32(nearest), I32(data)])

    def at(self, pointer: ir.Value, index: ir.Value, kind: ir.Type = F32) -> ir.Value:
        """Address of an element."""
        return self.gep(pointer, [index], source_etype=kind)

    def element(self, pointer: ir.Value, index: ir.Value, kind: ir.Type = F32) -> ir.Value:
        """Value of an element."""
        return self.load(self.at(pointer, index, kind), typ=kind)

    def vector(self, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
        """An unaligned vector."""
        return self.load(pointer, typ=kind, align=4)

    def put_vector(self, value: ir.Value, pointer: ir.Value) -> None:
        """Store an unaligned vector."""
        self.store(value, pointer, align=4)

    def splat(self, value: ir.Value, kind: ir.VectorType) -> ir.Value:
        """A vector of one value."""
        one = self.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))

    def picked(self, vectors: Sequence[ir.Value], lanes: Iterable[int]) -> ir.Value:
        """The values that stand in these lanes of equally long vectors in a row; as many as a power of two."""
        *front, last = vectors
        if len(front) > 1:
            half = len(vectors) // 2
            length = half * last.type.count
            return self.picked([self.picked(part, range(length)) for part in (vectors[:half], vectors[half:])], lanes)
        lanes = list(lanes)
        other = front[0] if front else last
        return self.shuffle_vector(other, last, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def field_address(self, pointer: ir.Value, structure: type[ctypes.Structure], name: str) -> ir.Value:
        """Address of a field of a ctypes structure."""
        return self.at(pointer, i64(getattr(structure, name).offset), I8)

    def field(self, pointer: ir.Value, structure: type[ctypes.Structure], name: str) -> ir.Value:
        """Value of a field of a ctypes structure."""
        kind = _CTYPES[dict(structure._fields_)[name]]
        return self.load(self.field_address(pointer, structure, name), typ=kind)

    def record(self, table: ir.Value, index: ir.Value, kind: np.dtype) -> dict[str, ir.Value]:
        """The 32-bit fields of one record of a table, as 64-bit values."""
        base = self.at(table, self.mul(index, i64(kind.itemsize)), I8)
        return {
            name: self.sext(self.load(self.at(base, i64(offset), I8), typ=I32), I64)
            for name, (_, offset) in kind.fields.items()
        }
