"""Elementary functions of float32 vectors in LLVM IR, for which no library is at hand."""

from __future__ import annotations

import math

from llvmlite import ir

from .instructions import PIXELS
from .ir import I32, VECTOR, ZEROS, Builder

INTEGERS = ir.VectorType(I32, PIXELS)
# exp(x) = 2^n * exp(r) with r = x - n * ln(2), |r| <= ln(2) / 2; ln(2) in two parts so that n * the first is exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
SMALLEST, LARGEST = -87.0, 88.0  # beyond them exp leaves the normal numbers
# Taylor's series of exp to the seventh power: 1e-8 relative at ln(2) / 2, less than float32 resolves.
EXP = [1 / math.factorial(k) for k in range(7, -1, -1)]
# erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2) with t = 1 / (1 + p x), to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
ERF_P = 0.3275911
ERF_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def constant(value: float) -> ir.Constant:
    """A vector of one number."""
    return ir.Constant(VECTOR, [value] * PIXELS)


def fused(b: Builder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """``x * y + z``, rounded once."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return b.call(b.intrinsic(f'llvm.fma.v{PIXELS}f32', kind), [x, y, z])


def larger(b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The larger of both; ``y`` where either is NaN."""
    return b.select(b.fcmp_ordered('>', x, y), x, y)


def exponential(b: Builder, x: ir.Value) -> ir.Value:
    """exp(x), to about 1e-7 relative; NaN stays NaN, and the result never leaves the normal numbers."""
    x = b.select(b.fcmp_ordered('<', x, constant(SMALLEST)), constant(SMALLEST), x)
    x = b.select(b.fcmp_ordered('>', x, constant(LARGEST)), constant(LARGEST), x)
    rounded = b.intrinsic(f'llvm.rint.v{PIXELS}f32', ir.FunctionType(VECTOR, [VECTOR]))
    n = b.call(rounded, [b.fmul(x, constant(1 / math.log(2)))])
    r = fused(b, n, constant(-LN2_HIGH), x)
    r = fused(b, n, constant(-LN2_LOW), r)
    result = constant(EXP[0])
    for coefficient in EXP[1:]:
        result = fused(b, result, r, constant(coefficient))
    # Of NaN any integer will do: the product stays NaN.
    power = b.fptosi(b.select(b.fcmp_ordered('ord', n, n), n, ZEROS), INTEGERS)
    exponent = b.shl(b.add(power, ir.Constant(INTEGERS, [127] * PIXELS)), ir.Constant(INTEGERS, [23] * PIXELS))
    return b.fmul(result, b.bitcast(exponent, VECTOR))


def gelu(b: Builder, x: ir.Value) -> ir.Value:
    """``x * (1 + erf(x / sqrt(2))) / 2``, to 2e-7 of the larger of 1 and |x|."""
    absolute = b.call(b.intrinsic(f'llvm.fabs.v{PIXELS}f32', ir.FunctionType(VECTOR, [VECTOR])), [x])
    z = b.fmul(absolute, constant(math.sqrt(0.5)))
    t = b.fdiv(constant(1.0), fused(b, z, constant(ERF_P), constant(1.0)))
    series = constant(ERF_A[0])
    for coefficient in ERF_A[1:]:
        series = fused(b, series, t, constant(coefficient))
    tail = b.fmul(b.fmul(series, t), exponential(b, b.fmul(z, b.fneg(z))))
    # erf is odd: x * erf(x / sqrt(2)) = |x| * erf(|x| / sqrt(2)).
    erf = b.fsub(constant(1.0), tail)
    return b.fmul(constant(0.5), fused(b, absolute, erf, x))
