"""Where the outputs of a layer lie on the image, so that each takes the level of its own tile.

All levels keep the same feature shapes, so tiles at different levels can run layer by layer on one full-image feature
map. A :class:`Placement` turns the level map into one level for each output of a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class UnplacedLayerError(ValueError):
    """The outputs of a layer cannot be placed on the image; such a network is routed as a whole."""


@dataclass(frozen=True)
class TileGrid:
    """A level map over one batch of images.

    Attributes:
        levels: integers ``[B, rows, columns]``, one level index for each tile.
        tile: side of a tile in lq pixels.
        height, width: lq size in pixels; tiles at the right and lower border may be cut.
    """

    levels: Tensor
    tile: int
    height: int
    width: int

    def at(self, height: int, width: int) -> Tensor:
        """Levels of the pixels of a ``height x width`` map that spans the image: integers ``[B, height, width]``.

        A pixel of a larger or smaller map lies at its centre, so up- and down-sampling inside a network keep tiles.
        """
        rows = _tile_of(height, self.height, self.tile, self.levels.device)
        columns = _tile_of(width, self.width, self.tile, self.levels.device)
        # Rows last: they are copied whole, where columns are gathered one by one.
        return self.levels[:, :, columns][:, rows]

    def densest(self) -> Tensor:
        """Densest level that each image holds: integers ``[B]``; layers that see the whole image run at it."""
        return self.levels.amax(dim=(1, 2))


def _tile_of(size: int, lq_size: int, tile: int, device: torch.device) -> Tensor:
    # floor((i + 0.5) * lq_size / size) in integers.
    lq_pixel = (2 * torch.arange(size, device=device) + 1) * lq_size // (2 * size)
    return lq_pixel // tile


class Placement(ABC):
    """How a layer's outputs lie on the image. Instances are hashable: equal placements share their index tensors."""

    @abstractmethod
    def levels(self, grid: TileGrid, shape: tuple[int, ...]) -> Tensor:
        """Level of each output: integers, with the shape of the output without its channel axis.

        Args:
            grid: the level map.
            shape: shape of the layer's output, channels included.

        Raises:
            UnplacedLayerError: the outputs do not lie on the image in this way.
        """

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels."""
        return -1


def _rows_for_each_image(grid: TileGrid, rows: int, shape: tuple[int, ...]) -> int:
    images = grid.levels.shape[0]
    if rows % images:
        raise UnplacedLayerError(f'output {shape} has {rows} rows for a batch of {images} images')
    return rows // images


@dataclass(frozen=True)
class ImagePlacement(Placement):
    """Feature maps ``[B, C, h, w]`` that span the image at a whole ratio up or down (up- and down-sampling).

    A map of 1 x 1 is global (channel attention): it runs at the densest level its image holds.
    """

    @property
    def channel_axis(self) -> int:
        return 1

    def levels(self, grid: TileGrid, shape: tuple[int, ...]) -> Tensor:
        if len(shape) != 4:
            raise UnplacedLayerError(f'output {shape} is not a feature map of one image')
        batch, _, height, width = shape
        repeats = _rows_for_each_image(grid, batch, shape)
        if (height, width) == (1, 1):
            levels = grid.densest()[:, None, None]
        elif not _spans(height, width, grid):
            raise UnplacedLayerError(
                f'a map of {height} x {width} does not span an image of {grid.height} x {grid.width} at a whole ratio'
            )
        else:
            levels = grid.at(height, width)
        return levels if repeats == 1 else levels.repeat_interleave(repeats, dim=0)


def _spans(height: int, width: int, grid: TileGrid) -> bool:
    """Whether a map has the image's size times s or, rounded either way, divided by s."""
    if height >= grid.height and width >= grid.width:
        ratio = height // grid.height
        return (height, width) == (grid.height * ratio, grid.width * ratio)
    # Several ratios fit a small side (9 rows are 3 rows at ratio 3 and, twice halved, at ratio 4): both sides decide.
    return any(
        height in (grid.height // ratio, -(-grid.height // ratio))
        and width in (grid.width // ratio, -(-grid.width // ratio))
        for ratio in range(2, max(grid.height, grid.width) + 1)
    )


@dataclass(frozen=True)
class TokenPlacement(Placement):
    """Tokens ``[B, h*w, C]`` of the lq image in row-major order, or vectors ``[B, C]`` of whole images."""

    def levels(self, grid: TileGrid, shape: tuple[int, ...]) -> Tensor:
        repeats = _rows_for_each_image(grid, shape[0], shape)
        if len(shape) == 2:
            levels = grid.densest()
        elif len(shape) == 3 and shape[1] == grid.height * grid.width:
            levels = grid.at(grid.height, grid.width).flatten(1)
        else:
            raise UnplacedLayerError(
                f'output {shape} is not one token for each pixel of an image of {grid.height} x {grid.width}'
            )
        return levels if repeats == 1 else levels.repeat_interleave(repeats, dim=0)


@dataclass(frozen=True)
class WindowPlacement(Placement):
    """Tokens ``[B * windows, window**2, C]`` of shifted square windows over the lq image (SwinIR's attention).

    Attributes:
        window: side of a window in lq pixels.
        shift: cyclic shift of the image to the upper left before it is cut, in lq pixels.
    """

    window: int
    shift: int

    def levels(self, grid: TileGrid, shape: tuple[int, ...]) -> Tensor:
        images, window = grid.levels.shape[0], self.window
        windows = (grid.height // window) * (grid.width // window)
        if grid.height % window or grid.width % window or shape[:2] != (images * windows, window * window):
            raise UnplacedLayerError(
                f'output {shape} is not made of {window} x {window} windows over an image of '
                f'{grid.height} x {grid.width}'
            )
        pixels = grid.at(grid.height, grid.width).roll((-self.shift, -self.shift), dims=(1, 2))
        blocks = pixels.view(images, grid.height // window, window, grid.width // window, window)
        return blocks.transpose(2, 3).reshape(images * windows, window * window)
