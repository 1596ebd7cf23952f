"""Memory for feature maps, kept from one layer and image to the next.

Memory fresh from the system costs more than a sparse layer computed in it: the first touch of each page is a fault.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from .instructions import FLOAT, PIXELS
from .storing import SHUFFLES

LINE = 64  # bytes of a cache line
ROOM = PIXELS * max(SHUFFLES)  # floats that the last vector of a row may reach over its end
PICTURE = 4  # channels that a picture has at most
KEPT = 1024 * 1024 * 1024  # bytes that are kept although nobody uses them: RRDBNet to 1280 x 720 pixels takes 0.6 GB
WASTE = 1.25  # how much larger than asked a kept block may be


class Blocks:
    """Blocks of floats that are lent as tensors and come back when the last tensor over them is gone.

    What is lent and kept together stays within ``kept`` bytes, or within the most that was ever lent at once.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._lent = self._most = 0  # bytes
        self._free: list[np.ndarray] = []
        self._returned: deque[np.ndarray] = deque()
        self._lock = threading.Lock()

    def lend(self, floats: int) -> Tensor:
        """A float32 tensor ``[floats]`` with any content."""
        with self._lock:
            self._take_in()
            fitting = [k for k, block in enumerate(self._free) if floats <= block.size <= WASTE * floats]
            block = self._free.pop(fitting[-1]) if fitting else None
            size = FLOAT * floats if block is None else block.nbytes
            self._drop_to(max(self.kept, self._most, self._lent + size) - self._lent - size)
            if block is None:
                block = np.empty(floats, dtype=np.float32)
            self._lent += size
            self._most = max(self._most, self._lent)
        lent = block[:floats]
        weakref.finalize(lent, self._take_back, block).atexit = False
        return torch.from_numpy(lent)

    def _take_back(self, block: np.ndarray) -> None:
        self._returned.append(block)
        # Collecting garbage runs this anywhere, also while this thread chooses a block: it is then taken in later.
        if self._lock.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._lock.release()

    def _take_in(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
            self._lent -= self._free[-1].nbytes
        self._drop_to(self.kept)

    def _drop_to(self, size: int) -> None:
        """Give back to the system what is kept beyond so many bytes, what came back first to begin with."""
        while sum(free.nbytes for free in self._free) > size:
            self._free.pop(0)


_blocks = Blocks()


def empty_map(images: int, channels: int, height: int, width: int, reach: int = ROOM) -> Tensor:
    """A float32 feature map whose rows have room for the last vector to reach over their end.

    Rows and channels are an odd number of cache lines apart, lest a column of rows or a pixel's channels fall on few
    sets of the cache. A picture, whose channels are few, is contiguous if nothing reaches over: it need not be copied.

    Args:
        images, channels, height, width: its shape.
        reach: floats that the last vector of a row may reach over its end, :data:`ROOM` at most.
    """
    if channels <= PICTURE and not reach:
        return _blocks.lend(images * channels * height * width).view(images, channels, height, width)
    pitch = _odd_lines(-(-width // PIXELS) * PIXELS + ROOM)
    plane = _odd_lines(height * pitch)
    block = _blocks.lend(images * channels * plane)
    return block.as_strided((images, channels, height, width), (channels * plane, plane, pitch, 1))


def adjacent(x: Tensor) -> Tensor:
    """A tensor itself if it is contiguous, else a contiguous copy."""
    if x.is_contiguous() or x.dtype != torch.float32:
        return x.contiguous()
    return _blocks.lend(x.numel()).view(x.shape).copy_(x)


def readable_beyond(x: Tensor, reach: int = ROOM) -> Tensor:
    """A feature map itself, or a copy if a vector that reaches over the end of a row might leave its memory.

    Args:
        x: ``[B, C, H, W]``.
        reach: as of :func:`empty_map`.
    """
    storage = x.untyped_storage().nbytes() // x.element_size()
    end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    if x.stride(3) == 1 and end + reach <= storage:
        return x
    return empty_map(*x.shape).copy_(x)


def _odd_lines(floats: int) -> int:
    lines = -(-floats * FLOAT // LINE)
    return (lines + (lines % 2 == 0)) * LINE // FLOAT
