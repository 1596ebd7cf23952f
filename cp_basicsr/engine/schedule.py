"""Cuts the outputs of a layer into bands and strips, and groups what of a strip runs at one level."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .geometry import Scratch
from .instructions import PIXELS
from .job import BAND, GROUP, RUN, STRIP
from .winograd import TILE_ROWS


@dataclass(frozen=True, eq=False)
class Schedule:
    """Work on one batch of feature maps.

    Attributes:
        bands, strips, groups, runs: records of :mod:`cp_basicsr.engine.job`.
    """

    bands: np.ndarray
    strips: np.ndarray
    groups: np.ndarray
    runs: np.ndarray

    @property
    def columns(self) -> int:
        """Columns that vectors reach over: as many as the outputs have, or more."""
        return int((self.strips['x'] + PIXELS * self.strips['vectors']).max(initial=0))


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
    # At least two bands for each thread, but of whole tiles of Winograd's convolution.
    rows = min(scratch.rows, TILE_ROWS * max(1, -(-images * height // (2 * threads * TILE_ROWS))))
    bands, strips, groups, runs = [], [], [], []
    for image in range(images):
        for tile_row, (top, bottom) in enumerate(zip(row_ends[:-1], row_ends[1:], strict=True)):
            cut = []
            for x, vectors, held in _strips(levels[image, tile_row], column_ends, scratch.vectors):
                cut.append((x, vectors, len(groups), len(held)))
                for level, members in held:
                    before = list(itertools.accumulate((count for _, count in members), initial=0))
                    groups.append((level, len(runs), len(members), before[-1]))
                    runs += [(*member, start) for member, start in zip(members, before[:-1], strict=True)]
            y = top
            for count in _heights(bottom - top, rows, threads):
                bands.append((len(strips), len(cut)))
                strips += [(image, y, count, *strip) for strip in cut]
                y += count
    tables = zip((bands, strips, groups, runs), (BAND, STRIP, GROUP, RUN), strict=True)
    return Schedule(*(np.array(table, dtype=kind) for table, kind in tables))


def _heights(height: int, rows: int, threads: int) -> list[int]:
    """Heights of bands, ``rows`` at most, in whole tiles of Winograd's convolution but for the last, and even.

    Many are a multiple of the threads: of 180 rows in bands of 16, one of two threads would do 96.
    """
    tiles, count = -(-height // TILE_ROWS), -(-height // rows)
    if count > threads:
        count = min(tiles, count + -count % threads)
    less, more = divmod(tiles, count)
    heights = [TILE_ROWS * (less + (index < more)) for index in range(count)]
    heights[-1] -= TILE_ROWS * tiles - height
    return heights


Groups = list[tuple[int, list[tuple[int, int]]]]


def _strips(levels: np.ndarray, column_ends: list[int], vectors: int) -> Iterator[tuple[int, int, Groups]]:
    """Column and vectors of each strip along a row of tiles; by level the column and vectors of each run within it."""
    changes = np.flatnonzero(np.diff(levels)) + 1
    starts = [0, *changes.tolist(), len(levels)]
    runs = [(column_ends[a], column_ends[b], int(levels[a])) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    longest = PIXELS * vectors
    if any(left % PIXELS for left, _, _ in runs):
        # A vector that reaches into the next run spoils it, so runs are done from left to right, each by itself.
        for left, right, level in runs:
            for x in range(left, right, longest):
                count = min(vectors, _vectors(right - x))
                yield x, count, [(level, [(0, count)])]
        return
    for x in range(0, column_ends[-1], longest):
        end = min(x + longest, column_ends[-1])
        held: dict[int, list[tuple[int, int]]] = {}
        for left, right, level in runs:
            left, right = max(left, x), min(right, end)
            if left < right:
                held.setdefault(level, []).append((left - x, _vectors(right - left)))
        yield x, _vectors(end - x), list(held.items())


def _vectors(pixels: int) -> int:
    return -(-pixels // PIXELS)


def level_schedule(levels: np.ndarray, scratch: Scratch, threads: int) -> Schedule:
    """Each output at its own level: integers ``[images, height, width]``; equal neighbours run together."""
    rows = _starts((levels[:, 1:] != levels[:, :-1]).any(axis=(0, 2)))
    columns = _starts((levels[:, rows, 1:] != levels[:, rows, :-1]).any(axis=(0, 1)))
    tiles = levels[:, rows][:, :, columns]
    return map_schedule(tiles, [*rows, levels.shape[1]], [*columns, levels.shape[2]], scratch, threads)


def _starts(changes: np.ndarray) -> list[int]:
    return [0, *(np.flatnonzero(changes) + 1).tolist()]
