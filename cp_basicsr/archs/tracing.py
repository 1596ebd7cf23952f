"""What must change in single architectures before they can be traced for inputs of any height and width."""

from __future__ import annotations

import torch
from basicsr.archs.swinir_arch import SwinTransformerBlock, window_partition
from torch import Tensor, nn


def make_traceable(base: nn.Module) -> nn.Module:
    """Change a plain base network in place so that no size is built into what it computes; it computes the same.

    SwinIR's blocks compare the size of the image with that of the training patches, and fill their attention mask slice
    by slice: a trace would hold for one side of that comparison, and have hundreds of operations for each block.
    """
    for block in base.modules():
        if type(block) is SwinTransformerBlock:
            block.__class__ = _TraceableBlock
            block.input_resolution = _Sizes(equal=block.shift_size == 0)
    return base


class _Sizes:
    """Stands for ``input_resolution`` and decides, whatever the size, which branch of ``forward`` a block takes.

    Args:
        equal: True: the stored mask, which is None where nothing is shifted. False: :meth:`calculate_mask`.
    """

    def __init__(self, equal: bool) -> None:
        self.equal = equal

    def __eq__(self, other: object) -> bool:
        return self.equal

    __hash__ = None


class _TraceableBlock(SwinTransformerBlock):
    def calculate_mask(self, x_size: tuple[int, int]) -> Tensor:
        """BasicSR's mask ``[windows, window**2, window**2]``: -100 between regions that lay apart before the shift."""
        rows, columns = (self._regions(size) for size in x_size)
        regions = (3 * rows[:, None] + columns)[None, :, :, None]
        windows = window_partition(regions, self.window_size).view(-1, self.window_size**2)
        return -100.0 * (windows.unsqueeze(1) != windows.unsqueeze(2)).float()

    def _regions(self, size: int) -> Tensor:
        position = torch.arange(size)
        return (position >= size - self.window_size).long() + (position >= size - self.shift_size).long()
