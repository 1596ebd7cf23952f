"""An image cut into overlapping tiles, and the tiles of one level and size run as one batch.

For networks whose layers cannot be placed on the image. What a tile computes within its overlap is thrown away; where
the overlap is as wide as the network sees, the rest is what the whole image gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Rows or columns of one tile in lq pixels: its own, and those that it is cut with."""

    own_start: int
    own_stop: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Rows or columns that are computed."""
        return self.stop - self.start

    @property
    def own(self) -> slice:
        """The tile's own among all of the image."""
        return slice(self.own_start, self.own_stop)

    @property
    def window(self) -> slice:
        """Those it is cut with among all of the image."""
        return slice(self.start, self.stop)

    def scaled(self, scale: int) -> Span:
        """The same of an output ``scale`` times as large."""
        return Span(self.own_start * scale, self.own_stop * scale, self.start * scale, self.stop * scale)

    @property
    def own_in_window(self) -> slice:
        """The tile's own among those it is cut with."""
        return slice(self.own_start - self.start, self.own_stop - self.start)


@dataclass(frozen=True)
class CutTile:
    """One tile of a grid: its place in the level map and on the image."""

    row: int
    column: int
    vertical: Span
    horizontal: Span

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width that are computed."""
        return self.vertical.length, self.horizontal.length


def spans(length: int, size: int, overlap: int, multiple: int = 1, smallest: int = 1) -> list[Span]:
    """One side of an image cut into tiles.

    Args:
        length: lq pixels, a multiple of ``multiple``.
        size: lq pixels that a tile owns; the last owns the rest.
        overlap: lq pixels that it sees beyond them on each side, as far as the image goes.
        multiple: windows begin and end at multiples of it, so they are widened to the next.
        smallest: lq pixels that a window has at least, where the image has them.
    """
    cut = []
    for own_start in range(0, length, size):
        own_stop = min(own_start + size, length)
        stop = min(_rounded_up(own_stop + overlap, multiple), length)
        start = max(own_start - overlap, 0) // multiple * multiple
        start = max(min(start, stop - _rounded_up(smallest, multiple)), 0)
        stop = min(max(stop, start + _rounded_up(smallest, multiple)), length)
        cut.append(Span(own_start, own_stop, start, stop))
    return cut


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def cut_tiles(height: int, width: int, size: int, overlap: int, multiple: int = 1, smallest: int = 1) -> list[CutTile]:
    """The tiles of an image in raster order; arguments as of :func:`spans`."""
    rows, columns = (enumerate(spans(side, size, overlap, multiple, smallest)) for side in (height, width))
    return [
        CutTile(row, column, vertical, horizontal) for (row, vertical), (column, horizontal) in product(rows, columns)
    ]


def run_cut_tiles(
    run: Callable[[Tensor, int], tuple[Tensor, int]], x: Tensor, levels: Tensor, tiles: list[CutTile], pixels: int
) -> tuple[Tensor, int]:
    """Run tiles of one level and size together and put what each owns in its place.

    Args:
        run: gives output and MACs of a batch ``[n, ..., h, w]`` at one level.
        x: ``[B, ..., H, W]``.
        levels: long ``[B, rows, columns]``.
        tiles: of the image, as :func:`cut_tiles` gives them.
        pixels: lq pixels that run at once, or one tile.

    Returns:
        The output of the whole image, and the MACs of all tiles, overlap included.
    """
    output, total = None, 0
    for level, members in _batches(levels, tiles, x.shape[0], pixels):
        batch = torch.stack([x[image, ..., tile.vertical.window, tile.horizontal.window] for image, tile in members])
        restored, macs = run(batch, level)
        total += macs
        scale = restored.shape[-1] // batch.shape[-1]
        if output is None:
            sides = (side * scale for side in x.shape[-2:])
            output = restored.new_empty((x.shape[0], *restored.shape[1:-2], *sides))
        for part, (image, tile) in zip(restored, members, strict=True):
            rows, columns = tile.vertical.scaled(scale), tile.horizontal.scaled(scale)
            output[image, ..., rows.own, columns.own] = part[..., rows.own_in_window, columns.own_in_window]
    return output, total


def _batches(
    levels: Tensor, tiles: list[CutTile], images: int, pixels: int
) -> Iterator[tuple[int, list[tuple[int, CutTile]]]]:
    """Level of each batch, and the image and tile of each of its members."""
    groups: dict[tuple[int, tuple[int, int]], list[tuple[int, CutTile]]] = defaultdict(list)
    held = levels.tolist()
    for image, tile in product(range(images), tiles):
        groups[held[image][tile.row][tile.column], tile.shape].append((image, tile))
    for (level, (height, width)), members in groups.items():
        step = max(pixels // (height * width), 1)
        for first in range(0, len(members), step):
            yield level, members[first : first + step]
