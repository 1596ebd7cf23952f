"""ClassSR's protocol: overlapping patches, each routed as one.

As the authors' code does it (XPixelGroup/ClassSR, codes/models/ClassSR_model.py and test_ClassSR.py): 32 x 32 lq pixels
with stride 28, what does not fill a patch at the right and below is left out of lq and gt; restored patches are rounded
to 8 bits and added up, and strips where two meet are halved; PSNR leaves out `scale` pixels along each side. Its FLOPs
are 2 x MACs of one patch, so that overlap is not counted; the classifier is not either.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from basicsr.utils import tensor2img
from torch import Tensor

from cp_basicsr.archs.restoring import Restored, restore_by_map
from cp_basicsr.options import OptionError
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.routing.controls import edge_scores

from .subject import Outcome, seconds_of, sigma_of

PATCH = 32  # lq pixels
STRIDE = 28
BATCH = 128  # patches that run together


class Patches:
    """A :class:`~cp_basicsr.tools.leaderboards.subject.Subject`: the patches of one image.

    Args:
        model: a ClassPruningModel; it is given the image.
        data: a batch of one image from a BasicSR dataset.
        name: of the image.

    Raises:
        OptionError: the image is smaller than a patch, has no gt, or the network cannot take patches of this size.
    """

    by_tile = True

    def __init__(self, model: Any, data: dict[str, Any], name: str) -> None:
        self.model, self.net, self.name = model, model.test_net.eval(), name
        if 'gt' not in data:
            raise OptionError(f'Image {name}: its dataset gives no gt; a leaderboard needs the true images.')
        if PATCH % self.net.multiple:
            raise OptionError(
                f'{self.net.base_options["type"]} needs multiples of {self.net.multiple} pixels; the classsr protocol '
                f'has patches of {PATCH}. Use `--protocol image`.'
            )
        self.sigma = sigma_of(data)
        model.feed_data(data)
        height, width = model.lq.shape[-2:]
        if min(height, width) < PATCH:
            raise OptionError(
                f'Image {name} is {width} x {height} lq pixels, smaller than a patch of {PATCH}. '
                'Use `--protocol image`.'
            )
        self.rows, self.columns = ((side - PATCH) // STRIDE + 1 for side in (height, width))
        self.patches = _patches(model.lq, PATCH, STRIDE).contiguous()
        self.scale = model.gt.shape[-1] // width
        covered = [side * self.scale for side in (self._side(self.rows), self._side(self.columns))]
        self._gt = model.gt[..., : covered[0], : covered[1]]
        self.gt = tensor2img([self._gt])
        count = len(self.patches)
        self.weights = torch.full((count,), 1 / count, dtype=torch.float64)
        shape = self.patches.shape[1:]
        self._patch_macs = [self.net.macs(shape).level(k) for k in range(len(self.net.levels))]
        multiple = self.net.multiple
        whole = (-(-self._side(count) // multiple) * multiple for count in (self.rows, self.columns))
        self._dense_macs = self.net.macs((shape[0], *whole)).dense
        self._overlap = count * self._patch_macs[-1] / self._dense_macs
        self.costs = self._overlap * self.net.costs(shape)
        self.overhead = self._overlap * self.net.overhead(shape, None)
        self._restored: list[Restored] = []
        self._run(RoutingChoice(tile=None, precision=model.choice.precision), None, first=1)

    @staticmethod
    def _side(count: int) -> int:
        return (count - 1) * STRIDE + PATCH

    def choose(self, choice: RoutingChoice) -> Outcome:
        """Restore every patch at one level, or as the classifier and the calibrated price choose.

        A budget is a share of the whole image's MACs, as everywhere; patches get what overlap leaves of it.
        """
        budget = None if choice.budget is None else choice.budget / self._overlap
        choice = replace(choice, budget=budget, tile=None, overlap=None)
        return self._outcome(seconds_of(lambda: self._run(choice, None)))

    def follow(self, levels: Tensor) -> Outcome:
        """Restore with the levels ``[n]``; no classifier runs."""
        return self._outcome(seconds_of(lambda: self._run(None, levels)))

    def output(self) -> Tensor:
        """The patches restored last ``[n, C, H, W]``."""
        return torch.cat([part.image for part in self._restored])

    def errors(self, truth: Tensor | None = None) -> Tensor:
        """Mean squared error of each patch ``[n]``, all channels."""
        if truth is None:
            truth = _patches(self._gt, PATCH * self.scale, STRIDE * self.scale)
        return (self.output().clamp(0, 1) - truth.clamp(0, 1)).square().mean(dim=(1, 2, 3)).cpu()

    def edges(self) -> Tensor:
        """Edge score of each patch ``[n]``."""
        return edge_scores(self.patches, None).flatten().cpu()

    @torch.no_grad()
    def _run(self, choice: RoutingChoice | None, levels: Tensor | None, first: int | None = None) -> None:
        self._restored, precision = [], self.model.choice.precision
        for start in range(0, first or len(self.patches), BATCH):
            batch = self.patches[start : start + BATCH]
            if choice is not None:
                self._restored.append(self.net.restore(batch, choice))
            else:
                part = levels[start : start + BATCH].view(-1, 1, 1)
                self._restored.append(restore_by_map(self.net, batch, part, None, precision=precision))

    def _outcome(self, seconds: float) -> Outcome:
        levels = torch.cat([part.levels.flatten() for part in self._restored]).cpu()
        patch_macs = torch.tensor(self._patch_macs, dtype=torch.float64)[levels].mean()
        macs = sum(part.macs for part in self._restored)
        return Outcome(self._combined(), levels, macs / self._dense_macs, seconds, 2 * float(patch_macs))

    def _combined(self) -> np.ndarray:
        """The restored image as ClassSR puts it together."""
        patches = [image for part in self._restored for image in part.image]
        size, step = PATCH * self.scale, STRIDE * self.scale
        combined = np.zeros(self.gt.shape, np.float32)
        for index, patch in enumerate(patches):
            top, left = (index // self.columns) * step, (index % self.columns) * step
            combined[top : top + size, left : left + size] += tensor2img([patch])
        overlap = size - step
        for column in range(1, self.columns):
            combined[:, column * step : column * step + overlap] /= 2
        for row in range(1, self.rows):
            combined[row * step : row * step + overlap] /= 2
        return combined


def _patches(image: Tensor, size: int, step: int) -> Tensor:
    """Patches of ``[1, C, H, W]`` in raster order: ``[n, C, size, size]``."""
    return image.unfold(2, size, step).unfold(3, size, step)[0].flatten(1, 2).transpose(0, 1)
