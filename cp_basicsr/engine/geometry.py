"""How the inputs of a layer lie in a thread's scratch memory, from which the compiled code reads them.

A strip of the image is copied there with its zero border before it is computed: a few hundred kilobytes that stay in
the second-level cache and on few pages, whatever the image's size and layout. (Read from the whole feature map instead,
64 channels x 3 rows lie on more pages than the first-level TLB holds, and at some widths collide in the cache.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import winograd
from .instructions import FLOAT, PIXELS

SCRATCH_LIMIT = 512 * 1024  # bytes: half of the smallest second-level cache among processors with AVX-512
# Rows and vectors of a strip, the largest first.
STRIPS = ((8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1))
# Winograd's convolution reads its inputs once, and fills its vectors better the more tiles of a level are at hand: so
# its strips are as high as a routed tile, and may take more. RRDBNet (6 blocks, layers of 64 to 192 channels, random
# levels in tiles of 16): 1230 ms in strips of at most 512 KB, 1000 in those of 720 KB, 930 in these.
TALL_STRIPS = tuple((16, vectors) for vectors in (8, 6, 4, 3, 2, 1))
TALL_LIMIT = 1280 * 1024


@dataclass(frozen=True)
class Scratch:
    """Inputs ``[channel, row, phase, column]`` of one strip of outputs.

    Columns of a strided layer are dealt out to as many phases as its stride, so that the inputs of neighbouring
    outputs are neighbours.

    Attributes:
        channels: input channels.
        kernel: height and width in taps.
        stride: of the layer, 1 or 2.
        rows, vectors: output rows, and vectors of 16 output pixels along a row, of the largest strip.
    """

    channels: int
    kernel: tuple[int, int]
    stride: int
    rows: int
    vectors: int

    @classmethod
    def fitting(cls, channels: int, kernel: tuple[int, int], stride: int) -> Scratch:
        """The largest strip within its limit, else the smallest there is."""
        choices = [(size, SCRATCH_LIMIT) for size in STRIPS]
        if winograd.suits(kernel, stride):
            choices = [(size, TALL_LIMIT) for size in TALL_STRIPS] + choices
        strips = [(cls(channels, kernel, stride, *size), limit) for size, limit in choices]
        return next((strip for strip, limit in strips if strip.floats * FLOAT <= limit), strips[-1][0])

    @property
    def phase(self) -> int:
        """Floats of one phase of one row: the strip's pixels and room for the kernel's width."""
        reach = -(-self.kernel[1] // self.stride)
        return PIXELS * (self.vectors + -(-(reach - 1) // PIXELS))

    @property
    def row(self) -> int:
        """Floats from one input row to the next."""
        return self.phase * self.stride

    @property
    def in_rows(self) -> int:
        """Input rows that ``rows`` output rows need."""
        return (self.rows - 1) * self.stride + self.kernel[0]

    @property
    def plane(self) -> int:
        """Floats from one channel to the next."""
        return self.in_rows * self.row

    @property
    def floats(self) -> int:
        """Floats in all."""
        return self.channels * self.plane

    @property
    def positions(self) -> int:
        """Vectors of outputs in a strip, for each channel."""
        return self.rows * self.vectors

    def offset(self, channel: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Floats from the input of an output pixel's first tap to that of another tap."""
        phase, step = column % self.stride, column // self.stride
        return channel * self.plane + row * self.row + phase * self.phase + step
