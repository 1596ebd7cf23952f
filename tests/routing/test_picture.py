"""The drawn level map: tints in order in black and white too, lines between levels, a legend that can be read."""

import cv2
import numpy as np
import pytest

from cp_basicsr.routing.picture import LEAST_BOX, LEGEND_HEIGHT, draw_level_map
from cp_basicsr.sparsity import NMPattern

PATTERN = NMPattern(4, [1, 2, 4])
FLAT = np.full((48, 192, 3), (30, 120, 200), np.uint8)
STRIPES = np.array([[0, 1, 2]])


def test_denser_tiles_are_lighter_and_the_colours_of_the_picture_do_not_disturb() -> None:
    drawn = draw_level_map(FLAT, STRIPES, 64, PATTERN)
    light = cv2.cvtColor(drawn, cv2.COLOR_BGR2GRAY)[:48].astype(int)
    tiles = [light[4:-4, left + 4 : left + 60] for left in (0, 64, 128)]
    assert all(np.ptp(tile) == 0 for tile in tiles)
    means = [int(tile[0, 0]) for tile in tiles]
    assert means[1] - means[0] > 25 and means[2] - means[1] > 25
    same_luma = np.full(FLAT.shape, cv2.cvtColor(FLAT, cv2.COLOR_BGR2GRAY)[0, 0], np.uint8)
    assert np.array_equal(drawn, draw_level_map(same_luma, STRIPES, 64, PATTERN))


def test_a_line_parts_tiles_of_different_levels_only() -> None:
    levels = np.array([[0, 0, 2], [0, 1, 2]])
    drawn = draw_level_map(FLAT[:, :72], levels, 24, PATTERN)[:48, :72]
    black = (drawn == 0).all(axis=2)
    expected = np.zeros((48, 72), bool)
    expected[:, 48] = True
    expected[24:, 24] = True
    expected[24, 24:48] = True
    assert np.array_equal(black, expected)


@pytest.mark.parametrize(
    ('width', 'height', 'legend'),
    [(1, 16, LEGEND_HEIGHT), (640, 900, LEGEND_HEIGHT), (3600, 2400, 120), (8000, 500, 33)],
)
def test_the_legend_grows_with_the_picture(width: int, height: int, legend: int) -> None:
    drawn = draw_level_map(np.zeros((height, width), np.uint8), np.array([[1]]), None, PATTERN)
    assert drawn.shape == (height + legend, max(width, 3 * LEAST_BOX), 3)
    text = drawn[height:, : drawn.shape[1] // 3].max(axis=2) > 200  # white on violet: the sparsest level's words
    rows = np.flatnonzero(text.any(axis=1))
    assert np.ptp(rows) > legend / 4
