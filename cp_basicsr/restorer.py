"""The Python interface. Load a checkpoint, restore arrays and tensors at a budget:

    import cp_basicsr
    from skimage import data

    picture = data.chelsea()  # [H, W, 3], RGB, uint8
    model = cp_basicsr.load('net_g_latest.pth')
    result = model.restore(picture, budget=0.5)
    result.image, result.macs_share, result.levels

No option file is needed: the checkpoint describes its network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cp_basicsr.archs.batches import padded
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.restoring import SMALLEST_CHECKED, Restored
from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.loading import load_network
from cp_basicsr.options import OptionError, check_number
from cp_basicsr.pixels import Picture, PictureError, Planes, from_planes, luma, to_planes
from cp_basicsr.precision import DEFAULT_PRECISION, check_precision
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.routing.picture import draw_level_map

GIB = 2**30
DEFAULT_MEMORY = 4.0
# Rows that strips of a network that depends on the whole image see beyond their own; twice what ESRGAN's users take.
INEXACT_HALO = 64
NOMINAL_SIDE = 256  # lq pixels of the image for which a budget is checked before any is read
BYTES_PER_VALUE = 6  # of a picture, besides the network's feature maps: float32, and two as it is in its file
RESERVE = 2**28  # bytes: maps of other sizes that the engine keeps, and the waste of allocators; 0.24 GiB were measured
LEAST_LIMIT = 2**26  # bytes of feature maps; strips are hardly more than their halos below


@dataclass(frozen=True)
class Restoration:
    """A restored picture and what it took.

    Attributes:
        image: of the kind, type and axes of the picture given, ``scale`` times its height and width.
        levels: integers ``[rows, columns]``, the level of each tile (``[B, rows, columns]`` for a batch; 1 x 1 where
            the picture was routed as a whole). Of a colour picture in a gray network, the densest of its channels.
        tile_side: side of a tile in pixels of ``image``; None where it was routed as a whole.
        macs: MACs spent, classifier, padding and alpha included.
        dense_macs: MACs of the base network on the same picture.
    """

    image: Picture
    levels: np.ndarray
    tile_side: int | None
    macs: int
    dense_macs: int

    @property
    def macs_share(self) -> float:
        """MACs as a fraction of the dense network's."""
        return self.macs / self.dense_macs


def load(source: str | Path, *, memory: float = DEFAULT_MEMORY, device: str | torch.device | None = None) -> Restorer:
    """A restorer from a checkpoint that training wrote, or from the name of a shipped one; no option file is needed.

    Args:
        source: a file, or a name.
        memory: GiB that the process should stay below while it restores; large pictures are worked on in strips.
        device: None: CUDA where there is one, else the CPU.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not describe a network that restores single pictures.
        OptionError: ``memory`` is no positive number.
    """
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net = load_network(source)
    if net.scale is None:
        raise CheckpointError(f'{source}: {net.base_options["type"]} restores videos, not single pictures.')
    if net.in_channels not in (1, 3):
        raise CheckpointError(
            f'{source}: {net.base_options["type"]} takes {net.in_channels} channels; pictures have 1 (gray) or 3 (RGB).'
        )
    return Restorer(net.to(device), memory)


class Restorer:
    """Restores pictures with one network.

    Args:
        net: a network in eval mode.
        memory: as in :func:`load`.

    Attributes:
        net: the network.
        scale: restored pixels for each pixel along one side.
    """

    def __init__(self, net: ClassPruningNet, memory: float = DEFAULT_MEMORY) -> None:
        self.net = net
        self.scale = net.scale
        self.memory = check_number(memory, 'memory', 0.1, 1e6)
        net.footprint.inexact = INEXACT_HALO
        self._own_bytes: int | None = None

    def restore(
        self,
        picture: Picture,
        budget: float | None = None,
        level: int | None = None,
        tile: int | None | Literal['trained'] = 'trained',
        overlap: int | None = None,
        precision: str = DEFAULT_PRECISION,
    ) -> Restoration:
        """Restore one picture, or a batch of tensors.

        Gray pictures pass a colour network as three equal channels and come back as its luma; the channels of a colour
        picture pass a gray network one by one. Alpha is kept where the scale is 1 or it is constant, and else restored
        as a gray picture.

        Args:
            picture: an array ``[H, W]`` or ``[H, W, C]`` (RGB), or a tensor ``[C, H, W]`` or ``[B, C, H, W]``, with 1
                to 4 channels (2 and 4: the last is alpha); uint8, uint16, or float in [0, 1]. Any size from 1 x 1.
            budget: share of the dense network's MACs to spend, classifier included.
            level: index of the level at which everything runs: 0 the sparsest, -1 the densest. With neither: the budget
                that the network was trained for.
            tile: side of a tile in pixels of ``picture``; None: one level for the whole picture; 'trained': as the
                network was trained.
            overlap: None: tiles are regions of one feature map. Else the picture is cut into tiles, and each sees so
                many pixels beyond its own on each side; for networks whose layers cannot be placed on the picture.
            precision: 'fp32', 'bf16', or on CUDA 'fp16'; the classifier and what is returned keep their own.

        Raises:
            PictureError: ``picture`` is none, or has channels that the network does not take.
            OptionError, PatternError: ``budget``, ``level``, ``tile``, ``overlap`` or ``precision`` is wrong.
            BudgetError: the levels do not allow this budget.
        """
        choice = self.choice(budget, level, tile, overlap, precision)
        planes = to_planes(picture)
        parts = self._restore_colour(planes.colour, choice)
        levels = torch.stack([part.levels for part in parts]).amax(dim=0).cpu().numpy()
        tile_side = parts[0].tile_side
        colour, alpha = _joined([part.image for part in parts]), planes.alpha
        if alpha is not None and self.scale > 1:
            if bool((alpha == alpha[:1, :, :1, :1]).all()):
                alpha = alpha[:1, :, :1, :1].expand(len(colour), 1, *colour.shape[-2:])
            else:
                parts.append(self._restore_gray(alpha, choice))
                alpha = parts[-1].image
        image = from_planes(Planes(colour, alpha if alpha is None else alpha.to(colour.device)), picture)
        macs, dense_macs = sum(part.macs for part in parts), sum(part.dense_macs for part in parts)
        batch = isinstance(picture, Tensor) and picture.dim() == 4
        return Restoration(image, levels if batch else levels[0], tile_side, macs, dense_macs)

    def choice(
        self,
        budget: float | None = None,
        level: int | None = None,
        tile: int | None | Literal['trained'] = 'trained',
        overlap: int | None = None,
        precision: str = DEFAULT_PRECISION,
    ) -> RoutingChoice:
        """How levels are chosen; args and exceptions as in :meth:`restore`."""
        check_precision(precision, next(self.net.parameters()).device, 'precision')
        trained = replace(self.net.calibration.trained_choice(), precision=precision)
        if tile == 'trained':
            tile = trained.tile
        elif tile is not None:
            if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
                raise OptionError(f'tile is {tile!r}; allowed: a positive number of pixels, or None (whole pictures).')
            if not self.net.classifier.by_tile:
                name = type(self.net.classifier).__name__
                raise OptionError(f'tile is {tile}, but {name} predicts whole pictures: give None.')
        if overlap is not None:
            _check_overlap(overlap, tile, level)
        if budget is not None and level is not None:
            raise OptionError(f'budget is {budget} and level is {level}; they exclude each other: give one.')
        if level is not None:
            self.net.pattern.index(level)
            return replace(trained, budget=None, level=level, tile=tile)
        if budget is not None:
            return replace(trained, budget=check_number(budget, 'budget', 0, 2), tile=tile, overlap=overlap)
        return replace(trained, tile=tile, overlap=overlap)

    def check(self, choice: RoutingChoice, where: str = 'budget') -> None:
        """Refuse a budget that the levels do not allow on pictures of usual sizes.

        Raises:
            BudgetError: naming ``where`` the budget was given.
        """
        side = padded(torch.empty(1, 1, NOMINAL_SIDE, NOMINAL_SIDE), self.net.multiple).shape[-1]
        self._check_budget(choice, (self.net.in_channels, side, side), where)

    def draw_levels(self, restoration: Restoration) -> np.ndarray:
        """The level map of one picture drawn over it, with a legend below: uint8 RGB ``[H', W', 3]``."""
        image = restoration.image if isinstance(restoration.image, np.ndarray) else None
        if image is None:
            raise PictureError('Level maps are drawn over arrays; this restoration holds a tensor.')
        colour = to_planes(image).colour
        image = from_planes(Planes(colour.expand(-1, 3, -1, -1), None), np.empty((1, 1, 3), np.uint8))
        drawn = draw_level_map(image[..., ::-1], restoration.levels, restoration.tile_side, self.net.pattern)
        return np.ascontiguousarray(drawn[..., ::-1])

    def _restore_colour(self, pixels: Tensor, choice: RoutingChoice) -> list[Restored]:
        """One for all channels, or one for each where a gray network meets colour."""
        if pixels.shape[1] == 1:
            return [self._restore_gray(pixels, choice)]
        if self.net.in_channels == 1:
            return [self._run(channel, choice) for channel in pixels.split(1, dim=1)]
        return [self._run(pixels, choice)]

    def _restore_gray(self, pixels: Tensor, choice: RoutingChoice) -> Restored:
        restored = self._run(pixels.expand(-1, self.net.in_channels, -1, -1), choice)
        return replace(restored, image=luma(restored.image))

    @torch.no_grad()
    def _run(self, pixels: Tensor, choice: RoutingChoice) -> Restored:
        """Restore ``[B, C, H, W]`` of the network's channels and any size."""
        height, width = pixels.shape[-2:]
        x = padded(pixels, self.net.multiple).to(next(self.net.parameters()).device)
        if x.shape[-2] * x.shape[-1] >= SMALLEST_CHECKED:
            self._check_budget(choice, x.shape[1:], 'budget')
        self.net.footprint.limit = self._bytes_for_features(x)
        restored = self.net.restore(x, choice)
        levels = restored.levels
        if restored.tile is not None:
            levels = levels[:, : -(-height // restored.tile), : -(-width // restored.tile)]
        image = restored.image[..., : height * restored.scale, : width * restored.scale]
        return replace(restored, image=image, levels=levels)

    def _check_budget(self, choice: RoutingChoice, shape: Sequence[int], where: str) -> None:
        if choice.budget is not None and choice.level is None:
            self.net.check_budget(choice.budget, shape, choice.tile, where, choice.overlap)

    def _bytes_for_features(self, x: Tensor) -> int:
        """What the memory allowed leaves for feature maps, once the process itself and the picture are counted."""
        if self._own_bytes is None:
            # The first run makes the engine's code, which stays.
            side = self.net.multiple
            self.net.restore(x.new_zeros(1, x.shape[1], side, side), RoutingChoice(level=-1))
            self._own_bytes = resident_bytes() if x.device.type == 'cpu' else 0
        values = x.numel() * (1 + self.scale**2)
        return max(int(self.memory * GIB) - self._own_bytes - RESERVE - BYTES_PER_VALUE * values, LEAST_LIMIT)


def _joined(channels: Sequence[Tensor]) -> Tensor:
    """Along the channels; one alone is not copied, large as it may be."""
    return channels[0] if len(channels) == 1 else torch.cat(list(channels), dim=1)


def _check_overlap(overlap: int, tile: int | None, level: int | None) -> None:
    if isinstance(overlap, bool) or not isinstance(overlap, int) or overlap < 0:
        raise OptionError(f'overlap is {overlap!r}; allowed: pixels from 0 up, or None (tiles are not cut).')
    if level is not None or tile is None:
        uncut = 'whole pictures are routed' if level is None else 'one level runs everywhere'
        raise OptionError(f'overlap is {overlap}, but {uncut}, so no tile is cut: leave it out.')


def resident_bytes() -> int:
    """Main memory that this process holds; where the system does not say, what it holds at most after its imports."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return GIB
    return pages * os.sysconf('SC_PAGE_SIZE')
