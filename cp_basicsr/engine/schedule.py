"""Cuts the outputs of a layer into bands and segments, so that each is computed at the level of its tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Scratch
from .instructions import PIXELS
from .job import BAND, SEGMENT


@dataclass(frozen=True, eq=False)
class Schedule:
    """Work on one batch of feature maps.

    Attributes:
        bands, segments: records of :data:`~cp_basicsr.engine.job.BAND` and :data:`~cp_basicsr.engine.job.SEGMENT`.
    """

    bands: np.ndarray
    segments: np.ndarray


def uniform_schedule(images: int, height: int, width: int, level: int, scratch: Scratch, threads: int) -> Schedule:
    """The whole batch at one level."""
    return map_schedule(np.full((images, 1, 1), level), [0, height], [0, width], scratch, threads)


def map_schedule(
    levels: np.ndarray, row_ends: list[int], column_ends: list[int], scratch: Scratch, threads: int
) -> Schedule:
    """Each rectangle of outputs at its own level.

    Args:
        levels: ``[images, rows, columns]`` level indices.
        row_ends, column_ends: where the rectangles' rows and columns begin and, last, end: ``rows + 1`` and
            ``columns + 1`` rising numbers.
        scratch: the largest strip.
        threads: that share the work; small images are cut finer, so that all have some.
    """
    images = levels.shape[0]
    height = row_ends[-1]
    # At least four bands for each thread, as long as a band's rows are worth the copy of its border.
    rows = min(scratch.rows, max(4, -(-images * height // (4 * threads))))
    bands, segments = [], []
    for image in range(images):
        for tile_row, (top, bottom) in enumerate(zip(row_ends[:-1], row_ends[1:], strict=True)):
            strips = _strips(levels[image, tile_row], column_ends, scratch.vectors)
            for y in range(top, bottom, rows):
                bands.append((len(segments), len(strips)))
                segments += [(image, y, min(rows, bottom - y), *strip) for strip in strips]
    return Schedule(np.array(bands, dtype=BAND), np.array(segments, dtype=SEGMENT))


def _strips(levels: np.ndarray, column_ends: list[int], vectors: int) -> list[tuple[int, int, int]]:
    """Column, vectors and level of strips along a row of tiles; neighbours of one level run together."""
    changes = np.flatnonzero(np.diff(levels)) + 1
    starts = [0, *changes.tolist(), len(levels)]
    strips = []
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        left, right = column_ends[first], column_ends[last]
        for x in range(left, right, PIXELS * vectors):
            strips.append((x, min(vectors, -(-(right - x) // PIXELS)), int(levels[first])))
    return strips


def level_schedule(levels: np.ndarray, scratch: Scratch, threads: int) -> Schedule:
    """Each output at its own level: integers ``[images, height, width]``; equal neighbours run together."""
    rows = _starts((levels[:, 1:] != levels[:, :-1]).any(axis=(0, 2)))
    columns = _starts((levels[:, rows, 1:] != levels[:, rows, :-1]).any(axis=(0, 1)))
    tiles = levels[:, rows][:, :, columns]
    return map_schedule(tiles, [*rows, levels.shape[1]], [*columns, levels.shape[2]], scratch, threads)


def _starts(changes: np.ndarray) -> list[int]:
    return [0, *(np.flatnonzero(changes) + 1).tolist()]
