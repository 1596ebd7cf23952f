"""Compiles the pattern of a layer at one level: one multiply-add for each kept weight, and nothing for the others."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from .geometry import Scratch
from .instructions import FLOAT, InstructionSet
from .machine_code import ExecutableMemory


@dataclass(frozen=True)
class _Taps:
    """Kept weights of a block of outputs in the order of execution: by input tap, then by output."""

    taps: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> _Taps:
        """From ``[outputs, taps]``."""
        taps, outputs = np.nonzero(mask.T)
        return cls(taps, outputs)


@dataclass(frozen=True, eq=False)
class Kernel:
    """Straight-line code for one mask.

    A layer's outputs are computed in blocks, as many at once as registers hold sums. Each block is a function
    ``void(const float *input, const float *weights, float *sums)`` that writes the sums of 16 neighbouring pixels.

    Attributes:
        memory: the code.
        entries: address of each block's function.
        block: output channels of a block; the last may have fewer.
        order: int64, indices into the flattened weight ``[out, in, kh, kw]`` in the order in which the code reads them.
        starts: index into ``order`` of each block's first weight.
    """

    memory: ExecutableMemory
    entries: tuple[int, ...]
    block: int
    order: np.ndarray
    starts: tuple[int, ...]

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """The kept values of a float32 weight ``[out, in, kh, kw]`` in the order of the code."""
        return np.ascontiguousarray(weight.reshape(-1)[self.order], dtype=np.float32)


_cache: WeakValueDictionary[tuple, Kernel] = WeakValueDictionary()


def kernel_of(mask: np.ndarray, scratch: Scratch, instructions: InstructionSet) -> Kernel:
    """The code of a pattern; made once for each pattern while anything uses it.

    Args:
        mask: bool ``[out, in, kh, kw]``.
        scratch: where the code finds its inputs.
        instructions: what it is made of.

    Raises:
        EngineUnavailableError: the system gives no executable memory.
    """
    key = (np.packbits(mask).tobytes(), mask.shape, scratch, instructions.name)
    kernel = _cache.get(key)
    if kernel is None:
        kernel = _cache[key] = _compile(mask, scratch, instructions)
    return kernel


def _compile(mask: np.ndarray, scratch: Scratch, instructions: InstructionSet) -> Kernel:
    out_width, in_width, height, width = mask.shape
    flat = mask.reshape(out_width, -1)
    channel, row, column = (axis.reshape(-1) for axis in np.indices((in_width, height, width)))
    displacements = FLOAT * scratch.offset(channel, row, column)
    parts, order, entries, starts = [], [], [], []
    size = count = 0
    for first in range(0, out_width, instructions.outputs):
        block = flat[first : first + instructions.outputs]
        kept = _Taps.of(block)
        code = _encode(kept, len(block), displacements, instructions)
        entries.append(size)
        starts.append(count)
        parts.append(code)
        order.append((kept.outputs + first) * flat.shape[1] + kept.taps)
        size += len(code)
        count += len(kept.taps)
    memory = ExecutableMemory(b''.join(part.tobytes() for part in parts))
    return Kernel(
        memory,
        tuple(memory.address + entry for entry in entries),
        instructions.outputs,
        np.concatenate(order),
        tuple(starts),
    )


def _encode(kept: _Taps, outputs: int, displacements: np.ndarray, instructions: InstructionSet) -> np.ndarray:
    """Code of one block: for each tap that any output keeps a load, then a multiply-add for each that keeps it."""
    count = len(kept.taps)
    load_size, multiply_size = instructions.load.shape[-1], instructions.multiply.shape[-1]
    advance_size, window = len(instructions.advance), instructions.window
    begin, end = instructions.begin[outputs], instructions.end[outputs]

    taps, first, load_of = np.unique(kept.taps, return_index=True, return_inverse=True)
    weight = np.arange(count)
    # %rsi moves on just before the first weight of every window but the first.
    advanced = weight // window
    multiply_at = len(begin) + (load_of + 1) * load_size + weight * multiply_size + advanced * advance_size
    advanced_before = np.maximum(first - 1, 0) // window
    load_at = len(begin) + np.arange(len(taps)) * load_size + first * multiply_size + advanced_before * advance_size
    last_advance = (max(count - 1, 0) // window) * advance_size
    body = len(taps) * load_size + count * multiply_size + last_advance
    code = np.empty(len(begin) + body + len(end), dtype=np.uint8)

    code[: len(begin)] = begin
    slots = np.arange(len(taps)) % instructions.slots
    loads = instructions.load[slots]
    for position, extra in instructions.load_displacements:
        loads[:, position : position + 4] = (displacements[taps] + extra).astype('<i4').view(np.uint8).reshape(-1, 4)
    code[load_at[:, None] + np.arange(load_size)] = loads
    multiplies = instructions.multiply[slots[load_of], kept.outputs]
    near = (weight % window - window // 2) * (FLOAT // instructions.displacement_unit)
    multiplies[:, instructions.multiply_displacement] = near.astype(np.int8).view(np.uint8)
    code[multiply_at[:, None] + np.arange(multiply_size)] = multiplies
    advance_at = multiply_at[window::window] - advance_size
    code[advance_at[:, None] + np.arange(advance_size)] = instructions.advance
    code[len(code) - len(end) :] = end
    return code
