"""Training patches that all levels were run on once, for the classifier to learn from again and again."""

from __future__ import annotations

import torch
from torch import Tensor


class MeasuredPatches:
    """lq patches in the memory of the CPU, with the error of each of their tiles at each level.

    Running all levels costs a hundred times the classifier itself, and a frozen supernet gives the same errors each
    time. 400 colour patches of 80 x 80 take 31 MB.

    Args:
        wanted: how many to measure.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._lq: list[Tensor] = []
        self._mse: list[Tensor] = []

    @property
    def complete(self) -> bool:
        """Whether all that were wanted have been measured."""
        return len(self._lq) >= self._wanted

    @property
    def mse(self) -> Tensor:
        """Of all patches so far: ``[N, L, rows, columns]``."""
        return torch.stack(self._mse)

    def add(self, lq: Tensor, mse: Tensor) -> None:
        """Keep a batch; of more patches than are wanted the first.

        Args:
            lq: ``[B, C, H, W]`` or ``[B, T, C, H, W]``.
            mse: ``[B, L, rows, columns]``, mean squared error of each tile at each level.
        """
        room = self._wanted - len(self._lq)
        self._lq += lq[:room].cpu().unbind()
        self._mse += mse[:room].cpu().unbind()

    def draw(self, count: int, mirror: bool, turn: bool) -> tuple[Tensor, Tensor]:
        """Random patches, as :meth:`add` takes them.

        Args:
            count: how many, each drawn from all, so that one may come twice.
            mirror: mirror each from left to right at random, as BasicSR's ``use_hflip``.
            turn: turn each by a multiple of 90 degrees at random, by 0 or 180 where it is not square, as ``use_rot``.
        """
        drawn = []
        for index in torch.randint(len(self._lq), (count,)).tolist():
            patch, mse = self._lq[index], self._mse[index]
            if mirror and torch.rand(()) < 0.5:
                patch, mse = patch.flip(-1), mse.flip(-1)
            if turn:
                quarters = int(torch.randint(4, ())) * (1 if patch.shape[-1] == patch.shape[-2] else 2)
                patch, mse = patch.rot90(quarters, (-2, -1)), mse.rot90(quarters, (-2, -1))
            drawn.append((patch, mse))
        patches, errors = zip(*drawn, strict=True)
        return torch.stack(patches), torch.stack(errors)
