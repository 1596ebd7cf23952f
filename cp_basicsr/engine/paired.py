"""Winograd's convolution with products in bf16: two channels make one term of a sum in float32.

Half as many multiply-adds as in float32. Only operands are rounded, after their transform and to 8 bits; sums,
transforms and feature maps stay float32. What it costs: README, *Precision*.
"""

from __future__ import annotations

from llvmlite import ir

from .instructions import PIXELS
from .ir import I32, VECTOR, Builder, i64
from .transforming import Transforming

PAIRS = ir.VectorType(I32, PIXELS)  # two bf16 in each lane, the even channel's in the lower half
HALF_UNIT = ir.Constant(PAIRS, [0x8000] * PIXELS)  # of the last place of a bf16, as the bits of a float32
UPPER = ir.Constant(PAIRS, [0xFFFF0000] * PIXELS)
LOWER_BITS = ir.Constant(PAIRS, [16] * PIXELS)


class _BFloat(ir.Type):
    """LLVM's bf16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return 'bfloat'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


OPERAND = ir.VectorType(_BFloat(), 2 * PIXELS)


def added_pairs(b: Builder, total: ir.Value, inputs: ir.Value, weights: ir.Value) -> ir.Value:
    """float32 sums and, in each lane, the products of two pairs."""
    kind = ir.FunctionType(VECTOR, [VECTOR, OPERAND, OPERAND])
    multiply = b.intrinsic(f'llvm.x86.avx512bf16.dpbf16ps.{32 * PIXELS}', kind)
    return b.call(multiply, [total, b.bitcast(inputs, OPERAND), b.bitcast(weights, OPERAND)])


class PairedTransforming(Transforming):
    """Terms of two channels; the last of an odd number has a zero for its other half."""

    term = PAIRS

    def _put_term(self, pack: ir.Value, term: ir.Value, places: list[ir.Value]) -> None:
        b = self.b
        even = b.mul(term, i64(2))
        for product, value in self._transformed(even, places):
            lower = b.lshr(self._rounded(value), LOWER_BITS)
            b.store(lower, self._term(pack, product, term), align=64)
        odd = b.add(even, i64(1))
        with b.if_then(b.icmp_signed('<', odd, self.fields['channels'])):
            for product, value in self._transformed(odd, places):
                place = self._term(pack, product, term)
                upper = b.and_(self._rounded(value), UPPER)
                b.store(b.or_(upper, b.load(place, typ=PAIRS, align=64)), place, align=64)

    def _rounded(self, value: ir.Value) -> ir.Value:
        """Bits of a float32 whose upper half is the nearest bf16; halves go away from zero."""
        return self.b.add(self.b.bitcast(value, PAIRS), HALF_UNIT)

    def _added(self, total: ir.Value, inputs: ir.Value, weight: ir.Value) -> ir.Value:
        return added_pairs(self.b, total, inputs, weight)
