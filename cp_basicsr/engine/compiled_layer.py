"""A convolution or linear layer compiled at its levels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import threads, winograd
from .driver import driver
from .geometry import Scratch
from .host import processor_name
from .inputs import Inputs
from .instructions import FLOAT, PIXELS, InstructionSet
from .job import PLANE, Activation, Job, LevelCode, map_values
from .kernel import Kernel, kernel_of
from .memory import empty_map, readable_beyond
from .native import Routine
from .schedule import Schedule

# Transformed inputs that a strip has at once: all of them, where three levels share 16 x 128 outputs evenly. (Then a
# 64 x 64 x 3 x 3 layer at random levels in tiles of 16 takes 9 % longer than a dense one; with two packs and strips of
# 8 rows, where many are not full, 25 %.)
PACKS = 4


@dataclass(frozen=True)
class Epilogue:
    """What is done with a layer's outputs while they are stored: ``shuffle(activation(y)) * scale + residual``.

    Attributes:
        activation: what becomes of the sum and its bias.
        slopes: float32 ``[out]`` with ``Activation.SLOPE``.
        shuffle: factor of PixelShuffle: one of the driver's ``SHUFFLES`` that divides the layer's block.
        residual: float32, shaped like the result; None: nothing is added or scaled.
        scale: factor before the residual is added.
    """

    activation: Activation = Activation.NONE
    slopes: Tensor | None = None
    shuffle: int = 1
    residual: Tensor | None = None
    scale: float = 1.0


PLAIN = Epilogue()


class _Level:
    """Code, weights and bias of one level, and the pointers to them.

    Weights are transformed for Winograd's convolution where that is faster; strips with numbers that it does not take
    run as code all the same.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray, mask: np.ndarray, scratch: Scratch, isa: InstructionSet):
        self.kernel: Kernel = kernel_of(mask, scratch, isa)
        self.weights = self.kernel.pack(weight)
        self.bias = bias
        count = len(self.kernel.entries)
        self.entries = (ctypes.c_void_p * count)(*self.kernel.entries)
        self.values = _pointers(self.weights, self.kernel.starts)
        self.transformed, blocks = None, None
        suits = winograd.suits(scratch.kernel, scratch.stride) and scratch.rows >= winograd.TILE_ROWS
        if suits and winograd.is_faster(mask, isa.outputs, isa.paired, processor_name()):
            self.transformed, starts = winograd.transformed(np.where(mask, weight, 0), isa.outputs, isa.paired)
            self.blocks = blocks = _pointers(self.transformed, starts)
        self.code = LevelCode(
            ctypes.addressof(self.entries),
            ctypes.addressof(self.values),
            bias.ctypes.data,
            self.kernel.parts,
            None if blocks is None else ctypes.addressof(blocks),
        )

    @property
    def size(self) -> int:
        """Bytes of code and weights."""
        transformed = 0 if self.transformed is None else self.transformed.nbytes
        return self.kernel.memory.size + self.weights.nbytes + transformed


def _pointers(values: np.ndarray, starts: Sequence[int]) -> ctypes.Array:
    base = values.ctypes.data
    return (ctypes.c_void_p * len(starts))(*(base + FLOAT * start for start in starts))


class CompiledLayer:
    """A Conv2d compiled at one or more levels.

    Args:
        levels: weight ``[out, in, kh, kw]``, bias ``[out]`` or None and bool mask of each level.
        stride: 1 or 2.
        padding: zero rows and columns on each side.
        instructions: what the code is made of.

    Raises:
        EngineUnavailableError: the system gives no executable memory.
    """

    def __init__(
        self,
        levels: list[tuple[Tensor, Tensor | None, Tensor]],
        stride: int,
        padding: tuple[int, int],
        instructions: InstructionSet,
    ) -> None:
        self.out_width, self.in_width, *kernel = levels[0][0].shape
        self.kernel = tuple(kernel)
        self.stride = stride
        self.padding = padding
        self.block = instructions.outputs
        self.paired = instructions.paired
        self.scratch = Scratch.fitting(self.in_width, self.kernel, stride)
        self._levels = [
            _Level(
                weight.detach().float().numpy(),
                np.zeros(self.out_width, np.float32) if bias is None else bias.detach().float().numpy().copy(),
                mask.numpy(),
                self.scratch,
                instructions,
            )
            for weight, bias, mask in levels
        ]
        self._codes = (LevelCode * len(levels))(*(level.code for level in self._levels))

    @property
    def transformed(self) -> tuple[bool, ...]:
        """Whether each level runs as Winograd's convolution."""
        return tuple(level.transformed is not None for level in self._levels)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The code of each level's pattern."""
        return tuple(level.kernel for level in self._levels)

    @property
    def code_size(self) -> int:
        """Bytes of machine code, shared with other layers of the same pattern, and of packed weights."""
        return sum(level.size for level in self._levels)

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of ``height x width``."""
        return tuple(
            (size + 2 * pad - kernel) // self.stride + 1
            for size, pad, kernel in zip((height, width), self.padding, self.kernel, strict=True)
        )

    def run(
        self,
        inputs: Inputs,
        schedule: Schedule,
        epilogue: Epilogue = PLAIN,
        upwards: bool = False,
        routine: Routine | None = None,
    ) -> Tensor:
        """Outputs ``[B, out, h, w]``, shuffled if so asked, float32; rows may lie further apart than they are wide.

        Args:
            inputs: float32 ``[B, in, H, W]``, any strides.
            schedule: made for the output's size and this layer's scratch.
            epilogue: what is done while the outputs are stored.
            upwards: begin at the lower end of the images, as is best after a layer that began at the upper end: what it
                computed last is still in the cache.
            routine: works on the :class:`~cp_basicsr.engine.job.Job`; None: the driver.
        """
        parts = [_with_adjacent_columns(part) for part in inputs.parts]
        images, _, height, width = inputs.shape
        planes = np.concatenate([_planes(part) for part in parts], axis=1)
        out_height, out_width = self.out_size(height, width)
        factor = epilogue.shuffle
        reach = factor * (schedule.columns - out_width)
        output = empty_map(images, self.out_width // factor**2, out_height * factor, out_width * factor, reach)
        residual = None if epilogue.residual is None else readable_beyond(epilogue.residual, reach)
        sums = self.scratch.floats
        transformed = sums + self.scratch.positions * self.block * PIXELS
        terms = winograd.terms(self.in_width, self.paired)
        step = (terms | 1) * PIXELS  # an odd number of cache lines, lest all products fall on one set
        products = transformed + PACKS * winograd.PRODUCTS * step
        job = Job(
            planes=planes.ctypes.data,
            height=height,
            width=width,
            channels=self.in_width,
            doubled=inputs.doubled,
            **map_values('output', output),
            outputs=self.out_width,
            **map_values('residual', residual),
            scale=epilogue.scale,
            activation=epilogue.activation,
            shuffle=factor,
            slopes=None if epilogue.slopes is None else epilogue.slopes.data_ptr(),
            kernel_rows=self.kernel[0],
            kernel_columns=self.kernel[1],
            stride=self.stride,
            pad_rows=self.padding[0],
            pad_columns=self.padding[1],
            scratch_phase=self.scratch.phase,
            scratch_row=self.scratch.row,
            scratch_plane=self.scratch.plane,
            sums=sums,
            block=self.block,
            transformed=transformed,
            transformed_step=step,
            terms=terms,
            transformed_packs=PACKS,
            products=products,
            tile_rows=winograd.TILE_ROWS if any(self.transformed) else 1,
            levels=ctypes.addressof(self._codes),
            bands=schedule.bands.ctypes.data,
            band_count=len(schedule.bands),
            strips=schedule.strips.ctypes.data,
            groups=schedule.groups.ctypes.data,
            runs=schedule.runs.ctypes.data,
            upwards=upwards,
        )
        scratch_floats = products + winograd.PRODUCTS * self.block * PIXELS
        threads.run(routine or driver(self.paired), job, job.band_count, scratch_floats)
        return output


def _planes(x: Tensor) -> np.ndarray:
    """:data:`~cp_basicsr.engine.job.PLANE` of each channel of each image: ``[B, C]``."""
    image, channel, row, _ = x.stride()
    planes = np.empty(x.shape[:2], dtype=PLANE)
    offsets = np.add.outer(np.arange(x.shape[0]) * image, np.arange(x.shape[1]) * channel)
    planes['address'] = x.data_ptr() + FLOAT * offsets
    planes['row'] = row
    return planes


def _with_adjacent_columns(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()
