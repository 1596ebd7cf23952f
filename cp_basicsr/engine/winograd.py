"""Winograd's convolution: a tile of outputs from fewer products of transformed inputs and transformed weights.

4 x 4 outputs of a 3 x 3 kernel cost 36 multiply-adds for each pair of channels instead of 144 (Winograd 1980; Lavin and
Gray, arXiv 1509.09308). Transformed weights have no zeros left where weights are masked, so a sparse level gains from
it only as long as it keeps more than about a quarter of its weights: :func:`is_faster` weighs that. The result is the
same but for rounding. With the points below, that is half as much in the mean as with the usual 0, 1, -1, 2, -2, and in
bf16 less than half.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

TAPS = 3  # of the kernel, along rows and columns
TILE_ROWS = TILE_COLUMNS = 4  # outputs
# Where polynomials are evaluated, beside 0 and infinity: at these and their negatives. Of pairs of small fractions
# whose powers float32 holds exactly they round the least (2/3 with 3/2, which it does not, is about as good).
NEAR, FAR = Fraction(5, 8), Fraction(3, 2)
POINTS = (Fraction(0), NEAR, -NEAR, FAR, -FAR)

# What an input channel and an output channel cost, in multiply-adds for each output pixel, beside the products: their
# transforms, and for the direct way the loads of unaligned inputs and of unfinished sums. Counted from the code's
# instructions, and mended by timing layers of 3 to 256 channels on Zen 5.
INPUT_TRANSFORM, OUTPUT_TRANSFORM = 22.0, 20.0
DIRECT_LOAD, DIRECT_OUTPUT = 1.7, 8.0
# What transforms cost beyond that on other processors, by LLVM's name. Zen 4, 11 layer shapes at 1/8 to 4/8 of the
# weights: time lost by the choice 3 % in float32, 1 % in bf16; so 0.2 % and less.
TRANSFORM_FACTORS = {'znver4': 2.0}


def _matrices(points: tuple[Fraction, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of inputs ``[n, n]``, of the kernel ``[n, 3]`` and of outputs ``[n - 2, n]`` for n - 1 points.

    Toom's and Cook's construction: outputs = output @ ((kernel @ taps) * (input @ inputs)).
    """
    n = len(points) + 1
    inputs, kernel = np.zeros((n, n)), np.zeros((n, TAPS))
    outputs = np.zeros((n - TAPS + 1, n))
    for index, point in enumerate(points):
        others = points[:index] + points[index + 1 :]
        inputs[index, : n - 1] = _with_roots(others)
        scale = np.prod([point - other for other in others])
        kernel[index] = [point**k / scale for k in range(TAPS)]
        outputs[:, index] = [point**k for k in range(len(outputs))]
    inputs[-1] = _with_roots(points)
    kernel[-1, -1] = outputs[-1, -1] = 1
    return inputs, kernel, outputs


def _with_roots(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of the polynomial with these roots, the lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


INPUTS, KERNEL, OUTPUTS = _matrices(POINTS)
SIDE = len(INPUTS)  # rows and columns of a tile's inputs
PRODUCTS = SIDE * SIDE  # of a tile, for each pair of channels
WIDTHS = (6, 8, 16, 24)  # outputs that code can compute at once: 6 fill the registers of AVX2, 24 those of AVX-512


def width(outputs: int) -> int:
    """Outputs that are computed for a block of so many: one of :data:`WIDTHS`."""
    return next(some for some in WIDTHS if some >= outputs)


def computed(outputs: int, block: int) -> int:
    """Outputs that are computed in all for a layer of ``outputs``, in blocks of ``block``."""
    return sum(width(min(block, outputs - first)) for first in range(0, outputs, block))


def direct_loads(mask: np.ndarray, block: int) -> int:
    """Inputs that a pattern's own code loads for each output pixel: bool ``[out, in, 3, 3]``, ``block`` at once."""
    return sum(int(mask[first : first + block].any(axis=0).sum()) for first in range(0, len(mask), block))


def terms(channels: int, paired: bool) -> int:
    """Terms of each product's sum: an input channel, or two if they are ``paired``."""
    return -(-channels // 2) if paired else channels


def transformed(weight: np.ndarray, block: int, paired: bool = False) -> tuple[np.ndarray, tuple[int, ...]]:
    """Weights as the code reads them, and where those of each block begin.

    Args:
        weight: float32 ``[out, in, 3, 3]``.
        block: outputs of a block; the last may have fewer.
        paired: make terms of two channels in bf16.

    Returns:
        float32 or uint32, for each block ``[products, terms, width of the block]`` (zeros stand for outputs that there
        are not), and the index of each block's first value.
    """
    everything = np.einsum('ar,oirs,bs->abio', KERNEL, weight.astype(np.float64), KERNEL)
    everything = everything.reshape(PRODUCTS, weight.shape[1], len(weight)).astype(np.float32)
    parts = [everything[..., first : first + block] for first in range(0, len(weight), block)]
    missing = [width(part.shape[-1]) - part.shape[-1] for part in parts]
    padded = [np.pad(part, ((0, 0), (0, 0), (0, n))) for part, n in zip(parts, missing, strict=True)]
    padded = [(_pairs(part) if paired else part).reshape(-1) for part in padded]
    starts = np.cumsum([0, *(part.size for part in padded[:-1])])
    return np.concatenate(padded), tuple(starts.tolist())


def _pairs(weights: np.ndarray) -> np.ndarray:
    """float32 ``[products, in, width]`` -> uint32 ``[products, terms, width]``: two bf16, the even channel below."""
    bits = np.pad(weights, ((0, 0), (0, weights.shape[1] % 2), (0, 0))).view(np.uint32)
    nearest = bits + 0x7FFF + (bits >> 16 & 1)  # halves go to even numbers
    return nearest[:, 1::2] & 0xFFFF0000 | nearest[:, ::2] >> 16


def suits(kernel: tuple[int, int], stride: int) -> bool:
    """Whether a layer can be computed this way at all."""
    return kernel == (TAPS, TAPS) and stride == 1


def is_faster(mask: np.ndarray, block: int, paired: bool = False, processor: str = '') -> bool:
    """Whether a layer is computed sooner this way than by adding up the terms of the weights that it keeps.

    Args:
        mask: bool ``[out, in, 3, 3]``.
        block: outputs that are computed at once.
        paired: terms are of two channels.
        processor: LLVM's name of it.
    """
    out_width, in_width = mask.shape[:2]
    products = PRODUCTS / (TILE_ROWS * TILE_COLUMNS) * terms(in_width, paired) * computed(out_width, block)
    transforms = INPUT_TRANSFORM * in_width + OUTPUT_TRANSFORM * out_width
    ours = products + TRANSFORM_FACTORS.get(processor, 1.0) * transforms
    return ours < int(mask.sum()) + DIRECT_LOAD * direct_loads(mask, block) + DIRECT_OUTPUT * out_width
