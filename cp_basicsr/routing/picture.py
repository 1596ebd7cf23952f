"""The level map drawn over a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from cp_basicsr.sparsity import NMPattern

OPACITY = 0.5
LEGEND_HEIGHT = 24  # pixels; more on pictures that are wider than WIDTHS times and higher than HEIGHTS times as much
WIDTHS, HEIGHTS = 30, 15
LEAST_BOX = 50  # pixels of the legend for each level; narrower pictures get a margin
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45  # of a legend of LEGEND_HEIGHT
# Sparse to dense from dark to light, so that the order shows in black and white too.
COLOUR_MAP = cv2.COLORMAP_VIRIDIS
MARGIN = 128  # gray


def draw_level_map(image: np.ndarray, levels: np.ndarray, side: int | None, pattern: NMPattern) -> np.ndarray:
    """The restored picture in gray, each tile tinted by its level, with lines between levels and a legend below.

    Args:
        image: uint8 ``[H, W, 3]`` (BGR) or ``[H, W]``, the restored picture without padding.
        levels: integer ``[rows, columns]``, the level map.
        side: side of a tile in pixels of ``image``; None where the image was routed as a whole.
        pattern: names the levels.

    Returns:
        uint8 BGR ``[H + legend, W, 3]``, W at least ``LEAST_BOX`` for each level, legend at least ``LEGEND_HEIGHT``.
    """
    tinted, tints = tint_levels(image, levels, side, len(pattern.levels)), level_tints(len(pattern.levels))
    width = tinted.shape[1]
    margin = max(LEAST_BOX * len(tints) - width, 0)
    tinted = np.pad(tinted, ((0, 0), (0, margin), (0, 0)), constant_values=MARGIN)
    enlarged = max(1.0, min(width / WIDTHS, tinted.shape[0] / HEIGHTS) / LEGEND_HEIGHT)
    return np.vstack([tinted, _legend(width + margin, enlarged, levels, pattern, tints)])


def tint_levels(image: np.ndarray, levels: np.ndarray, side: int | None, count: int) -> np.ndarray:
    """The picture of :func:`draw_level_map` without its legend, of ``count`` levels: uint8 BGR ``[H, W, 3]``."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    height, width = gray.shape
    side = side or max(height, width)
    spread = levels.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    tints = level_tints(count)[spread]
    tinted = cv2.addWeighted(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), 1 - OPACITY, tints, OPACITY, 0)
    tinted[_borders(spread, max(1, width // 600))] = 0
    return tinted


def _borders(spread: np.ndarray, thickness: int) -> np.ndarray:
    """Pixels ``[H, W]`` within ``thickness`` of one at another level, above or to the left."""
    borders = np.zeros(spread.shape, bool)
    borders[thickness:] |= spread[thickness:] != spread[:-thickness]
    borders[:, thickness:] |= spread[:, thickness:] != spread[:, :-thickness]
    return borders


def level_tints(count: int) -> np.ndarray:
    """The colour of each of ``count`` levels, sparse to dense: uint8 BGR ``[count, 3]``."""
    values = np.linspace(0, 255, count).astype(np.uint8)
    return cv2.applyColorMap(values[:, None], COLOUR_MAP)[:, 0]


def _legend(width: int, enlarged: float, levels: np.ndarray, pattern: NMPattern, tints: np.ndarray) -> np.ndarray:
    """One box for each level with its pattern and its share of the tiles, ``enlarged`` times as large as need be."""
    strip = np.zeros((round(enlarged * LEGEND_HEIGHT), width, 3), np.uint8)
    shares = np.bincount(levels.ravel(), minlength=len(tints)) / levels.size
    edges = np.linspace(0, width, len(tints) + 1).astype(int)
    for k, (left, right) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        strip[:, left:right] = tints[k]
        text = f'{pattern.label(k)} {100 * shares[k]:.0f}%'
        scale, place = enlarged * FONT_SCALE, (left + round(4 * enlarged), round(17 * enlarged))
        needed = cv2.getTextSize(text, FONT, scale, round(enlarged))[0][0] + 8 * enlarged
        scale *= min(1, (right - left) / needed)
        light = int(tints[k].astype(int).sum()) > 380
        cv2.putText(strip, text, place, FONT, scale, (0 if light else 255,) * 3, round(enlarged), cv2.LINE_AA)
    return strip
