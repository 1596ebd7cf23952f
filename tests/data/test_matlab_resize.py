import math

import cv2
import numpy as np
import pytest
from basicsr.utils.matlab_functions import imresize
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_basicsr.data.matlab_resize import matlab_lr


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x < 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0


def mirrored(position: int, length: int) -> int:
    """MATLAB's index rule: 1..n, n..1, 1..n, ... without end, here from 0."""
    position %= 2 * length
    return position if position < length else 2 * length - 1 - position


def shrink_line(line: list[int], scale: int) -> list[int]:
    """One 1-D pass of imresize, pixel by pixel in floating point, rounded to uint8 as MATLAB does."""
    out = []
    for i in range(math.ceil(len(line) / scale)):
        centre = (i + 0.5) * scale - 0.5
        total = weight_sum = 0.0
        for position in range(math.floor(centre - 2 * scale), math.ceil(centre + 2 * scale) + 1):
            weight = cubic((position - centre) / scale)
            total += weight * line[mirrored(position, len(line))]
            weight_sum += weight
        # a sum that is .5 in exact arithmetic may come out just below it here
        out.append(min(255, max(0, math.floor(total / weight_sum + 0.5 + 1e-9))))
    return out


def shrink(img: np.ndarray, scale: int) -> np.ndarray:
    rows_done = np.array([shrink_line(column.tolist(), scale) for column in img.T]).T
    return np.array([shrink_line(row.tolist(), scale) for row in rows_done])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    scale=st.sampled_from([2, 3, 4, 5, 8]),
    extreme=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_plain_loops_at_any_size(height: int, width: int, scale: int, extreme: bool, seed: int) -> None:
    img = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    if extreme:  # only black and white: over- and undershoots are cut
        img = (img > 127).astype(np.uint8) * 255
    np.testing.assert_array_equal(matlab_lr(img, scale), shrink(img, scale))


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_channels_are_resized_apart(scale: int) -> None:
    img = np.random.default_rng(0).integers(0, 256, (25, 31, 3), dtype=np.uint8)
    result = matlab_lr(img, scale)
    assert result.dtype == np.uint8 and result.shape == (math.ceil(25 / scale), math.ceil(31 / scale), 3)
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], matlab_lr(img[..., channel], scale))


def test_differs_from_basicsr_by_the_rounding_between_the_passes(write_photographs) -> None:
    """basicsr's imresize keeps floats until the end, so that some values come out 1 or 2 off, and none more."""
    img = cv2.imread(str(write_photographs('hr', a=(120, 120)) / 'a.png'))
    once = np.clip(np.round(imresize(img / 255.0, 0.5) * 255), 0, 255).astype(int)
    off = np.abs(matlab_lr(img, 2).astype(int) - once)
    assert 0.01 < (off > 0).mean() < 0.3 and off.max() <= 2


@pytest.mark.parametrize('scale', range(2, 17))
def test_a_flat_image_stays_flat_at_every_scale(scale: int) -> None:
    img = np.full((40, 33), 255, np.uint8)
    assert (matlab_lr(img, scale) == 255).all()


def test_refusals_name_the_value() -> None:
    img = np.zeros((8, 8), np.uint8)
    for scale in (1, 17, 2.5, '2'):
        with pytest.raises(ValueError, match=f'scale {scale!r}'):
            matlab_lr(img, scale)
    with pytest.raises(TypeError, match='float64'):
        matlab_lr(img.astype(float), 2)
    with pytest.raises(ValueError, match=r'\(8,\)'):
        matlab_lr(img[0], 2)
    with pytest.raises(ValueError, match=r'\(0, 8\)'):
        matlab_lr(img[:0], 2)
