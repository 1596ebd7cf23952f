"""MATLAB's `imresize(img, 1/scale, 'bicubic')` for uint8 images, exact to the last bit.

For uint8 input MATLAB rounds to uint8 between its two passes, rows (dimension 1) first;
`basicsr.utils.matlab_functions.imresize` stays in floating point, so that 10 to 15 % of the values differ by 1 or 2.

At 1/scale the antialiasing kernel is Keys' cubic (a = -1/2), stretched by `scale`. Its taps lie at integer or
half-integer distances, so every weight is a fraction over one common denominator, and the sums here are exact in
integers. MATLAB computes them in double precision, and the two can only differ where a sum falls on .5 exactly and
MATLAB's rounding error decides. That never happens for powers of two (binary fractions, exact in a double) nor for odd
scales (odd denominators); 6, 10, 12 and 14 are the ones without that guarantee.
"""

from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

MAX_SCALE = 16  # beyond it the weighted sums would no longer fit 32 bits


def matlab_lr(img: np.ndarray, scale: int) -> np.ndarray:
    """Make the low-resolution image that MATLAB's bicubic `imresize(img, 1/scale)` makes.

    Args:
        img: uint8 image, (H, W) or (H, W, C), of any size.
        scale: Integer from 2 to 16.

    Returns:
        uint8 image, (ceil(H/scale), ceil(W/scale)) or with the same C.

    Raises:
        TypeError: `img` is not a uint8 array.
        ValueError: `img` is not 2-D or 3-D, or is empty, or `scale` is not an integer from 2 to 16.
    """
    if not isinstance(img, np.ndarray) or img.dtype != np.uint8:
        raise TypeError(f'matlab_lr needs a uint8 array, not {getattr(img, "dtype", type(img).__name__)}.')
    if img.ndim not in (2, 3) or 0 in img.shape:
        raise ValueError(f'matlab_lr needs an image of shape (H, W) or (H, W, C), not {img.shape}.')
    if scale not in range(2, MAX_SCALE + 1):
        raise ValueError(f'scale {scale!r} is not an integer from 2 to {MAX_SCALE}.')
    rows_done = _shrink_rows(img, int(scale))
    return np.ascontiguousarray(_shrink_rows(rows_done.swapaxes(0, 1), int(scale)).swapaxes(0, 1))


def _shrink_rows(img: np.ndarray, scale: int) -> np.ndarray:
    first, weights, denominator = _taps(scale)
    height = img.shape[0]
    out_height = -(-height // scale)
    before = -first
    after = max(0, scale * (out_height - 1) + first + len(weights) - height)
    # MATLAB mirrors the indices including the edge pixel, again and again where the image is shorter than the kernel
    padded = np.pad(img, [(before, after)] + [(0, 0)] * (img.ndim - 1), mode='symmetric')
    total = np.full((out_height, *img.shape[1:]), denominator // 2, np.int32)
    for tap, weight in enumerate(weights):
        total += np.int32(weight) * padded[tap : tap + scale * (out_height - 1) + 1 : scale]
    total //= denominator
    return np.clip(total, 0, 255).astype(np.uint8)


@lru_cache
def _taps(scale: int) -> tuple[int, tuple[int, ...], int]:
    """Position of the first tap relative to pixel scale * i, integer weights, and their (even) denominator."""
    centre = Fraction(scale - 1, 2)
    reach = 2 * scale
    positions = [p for p in range(-reach, reach + scale) if _cubic((p - centre) / scale)]
    weights = [_cubic((p - centre) / scale) / scale for p in positions]
    # even, so that adding half of it before the division rounds half up
    denominator = lcm(2, *(weight.denominator for weight in weights))
    integers = [0] * (positions[-1] - positions[0] + 1)
    for position, weight in zip(positions, weights, strict=True):
        integers[position - positions[0]] = int(weight * denominator)
    return positions[0], tuple(integers), denominator


def _cubic(x: Fraction) -> Fraction:
    """Keys' cubic convolution kernel, a = -1/2 (R. Keys, IEEE TASSP 29(6), 1981)."""
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return Fraction(-1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)
