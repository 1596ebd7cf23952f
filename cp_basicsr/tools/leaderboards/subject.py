"""One image that a model holds, restored again and again: whole, its tiles at any level."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cp_basicsr.archs.restoring import level_costs
from cp_basicsr.options import OptionError
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.routing.controls import edge_scores
from cp_basicsr.routing.targets import tile_mse

# Y of BT.601 as BasicSR's metrics compute it from R, G and B in [0, 1].
LUMA = torch.tensor([65.481, 128.553, 24.966]) / 255


@dataclass(frozen=True)
class Outcome:
    """An image restored in one way.

    Attributes:
        image: as metrics take it: ``[H, W, 3]`` (BGR) or ``[H, W]`` in 0 to 255.
        levels: long ``[n]``, the level of each tile.
        macs_share: MACs as a fraction of the dense network's on the whole image; everything that ran is counted.
        seconds: that it took.
        flops: 2 x MACs of one patch as ClassSR counts them; None under another protocol.
    """

    image: np.ndarray
    levels: Tensor
    macs_share: float
    seconds: float
    flops: float | None = None


class Subject(Protocol):
    """What the rows of a table are measured on.

    Attributes:
        name: of the image.
        gt: the true image, uint8.
        costs: float64 ``[L]``, share of the dense MACs of each level on this image.
        overhead: share of the dense MACs that the classifier spends.
        weights: float64 ``[n]``, share of the image that each tile covers.
        by_tile: whether the image has several tiles.
        sigma: of the noise that its dataset added, in 8-bit units; None without noise.
    """

    name: str
    gt: np.ndarray
    costs: Tensor
    overhead: float
    weights: Tensor
    by_tile: bool
    sigma: float | None

    def choose(self, choice: RoutingChoice) -> Outcome:
        """Restore at one level or as the classifier and the policy choose."""

    def follow(self, levels: Tensor) -> Outcome:
        """Restore with given levels, long ``[n]``."""

    def output(self) -> Tensor:
        """The network's output that was restored last, for :meth:`errors`; later runs leave it alone."""

    def errors(self, truth: Tensor | None = None) -> Tensor:
        """Mean squared error of each tile, ``[n]``, of what was restored last.

        Args:
            truth: what :meth:`output` gave earlier; None compares with the true image.
        """

    def edges(self) -> Tensor:
        """Edge score of each tile, ``[n]``."""


class WholeImage:
    """A :class:`Subject`: one pass over the whole image, tiles as ``val.tile`` asks.

    Args:
        model: a ClassPruningModel; it is given the image.
        data: a batch of one image from a BasicSR dataset.
        name: of the image.
        luma: whether errors are measured on Y.
        border: pixels of the restored image whose errors do not count.

    Raises:
        OptionError: the data have no gt, or one of another size than the restored image.
    """

    def __init__(self, model: Any, data: dict[str, Any], name: str, luma: bool, border: int) -> None:
        self.model, self.name, self.luma, self.border = model, name, luma, border
        if 'gt' not in data:
            raise OptionError(f'Image {name}: its dataset gives no gt; a leaderboard needs the true images.')
        self.sigma = sigma_of(data)
        model.feed_data(data)
        if model.lq.dim() == 4:  # the layout in which dense convolutions are fastest, so that no rival is slowed
            model.lq = model.lq.contiguous(memory_format=torch.channels_last)
        model.prepare()
        with model.using(replace(model.choice, budget=None, level=None)):
            model.test()  # says by which tiles it can be routed, and warms up
        self.gt = model.current_images(name)['img2']
        self.tile, self._grid = model.restored.tile, model.restored.levels.shape[1:]
        self.by_tile = self.tile is not None
        padded = model.padded_lq()
        self.overhead = model.test_net.overhead(padded.shape[1:], self.tile)
        self.costs, areas = level_costs(model.test_net, padded, self.tile, model.choice.overlap)
        self.weights = areas / areas.sum()

    def choose(self, choice: RoutingChoice) -> Outcome:
        """Restore as ``choice`` asks."""
        with self.model.using(choice):
            return self._timed(self.model.test)

    def follow(self, levels: Tensor) -> Outcome:
        """Restore with the levels ``[n]``; no classifier runs."""
        return self._timed(lambda: self.model.test((levels.view(1, *self._grid), self.tile)))

    def output(self) -> Tensor:
        """The image restored last, with its padding."""
        return self.model.restored.image

    def errors(self, truth: Tensor | None = None) -> Tensor:
        """Mean squared error of each tile ``[n]`` of the image restored last; padding and border count as exact."""
        whole = self.model.restored.image.flatten(1, -3)
        known = (self.model.gt if truth is None else truth).flatten(1, -3)
        height, width = self.model.gt.shape[-2:]
        edge = self.border
        inside = (..., slice(edge, height - edge), slice(edge, width - edge))
        truth = whole.clone()
        truth[inside] = known[inside]
        whole = whole.clamp(0, 1)
        truth = truth.clamp(0, 1)
        if self.luma and whole.shape[1] == 3:
            weights = LUMA.to(whole).view(1, 3, 1, 1)
            whole, truth = ((weights * image).sum(dim=1, keepdim=True) for image in (whole, truth))
        side = self.model.restored.scale * self.tile if self.by_tile else max(whole.shape[-2:])
        return tile_mse(whole, truth, side).flatten().cpu()

    def edges(self) -> Tensor:
        """Edge score of each tile ``[n]``."""
        return edge_scores(self.model.padded_lq(), self.tile).flatten().cpu()

    def _timed(self, run: Callable[[], None]) -> Outcome:
        seconds = seconds_of(run)
        restored = self.model.restored
        levels = restored.levels.flatten().cpu()
        if levels.numel() != self.weights.numel():  # one level for everything
            levels = levels.expand(self.weights.numel())
        return Outcome(self.model.current_images(self.name)['img'], levels, restored.macs_share, seconds)


def sigma_of(data: Mapping[str, Any]) -> float | None:
    """What :class:`~cp_basicsr.data.gaussian_noise_dataset.GaussianNoiseDataset` says of a batch of one image."""
    return float(data['sigma']) if 'sigma' in data else None


def seconds_of(run: Callable[[], None]) -> float:
    """Seconds that ``run`` takes."""
    _synchronise()
    start = time.perf_counter()
    run()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
