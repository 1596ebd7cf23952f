"""What a layer reads: a feature map that need not be made for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Maps whose concatenation along the channels a layer reads.

    Attributes:
        parts: ``[B, C, H, W]`` each; the tokens ``[..., C]`` of a Linear are one part.
        doubled: each pixel stands twice along rows and columns, as after ``F.interpolate(scale_factor=2)``.
    """

    parts: tuple[Tensor, ...]
    doubled: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the map that they stand for."""
        first = self.parts[0]
        if first.dim() != 4:
            return tuple(first.shape)
        height, width = (side * (2 if self.doubled else 1) for side in first.shape[2:])
        return first.shape[0], sum(part.shape[1] for part in self.parts), height, width

    def made(self) -> Tensor:
        """The map itself."""
        x = self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, dim=1)
        return F.interpolate(x, scale_factor=2) if self.doubled else x
