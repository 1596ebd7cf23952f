"""Compiles the pattern of a layer at one level: multiply-adds for each kept weight, and nothing for the others."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from .geometry import Scratch
from .instructions import FLOAT, InstructionSet
from .machine_code import ExecutableMemory

# Instructions of one part of a block's code, which is run for every pixel of a strip before the next part is. Parts
# that fit into the processor's cache of decoded instructions run faster: a 64 x 64 x 3 x 3 layer at 2:4 on 128 x 128
# pixels takes 1.78 ms in parts and 1.87 ms as a whole.
PART = 3000
ENTRY_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class Kernel:
    """Straight-line code for one mask.

    A layer's outputs are computed in blocks, as many at once as registers hold sums, and the code of each block in
    ``parts``, each with a share of the input channels. Each part is a function
    ``void(const float *input, const float *weights, float *sums, long vectors)`` for so many vectors of 16 neighbouring
    pixels. The first part writes its sums, the others add to them.

    Attributes:
        memory: the code.
        entries: address of each part of each block.
        parts: of each block.
        block: output channels of a block; the last may have fewer.
        order: int64, indices into the flattened weight ``[out, in, kh, kw]`` in the order in which the code reads them.
        starts: index into ``order`` of the first weight of each part of each block.
    """

    memory: ExecutableMemory
    entries: tuple[int, ...]
    parts: int
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
    firsts = range(0, len(mask), instructions.outputs)
    blocks = [_Block.of(mask[first : first + instructions.outputs], scratch, instructions) for first in firsts]
    parts = -(-max(block.cost for block in blocks) // PART)
    codes, order, entries, starts = [], [], [], []
    size = count = 0
    for first, block in zip(firsts, blocks, strict=True):
        code, at, begins = block.encode(parts)
        entries += (size + at).tolist()
        starts += (count + begins).tolist()
        codes.append(code)
        order.append(block.weights + first * mask[0].size)
        size += len(code)
        count += len(block.weights)
    memory = ExecutableMemory(b''.join(code.tobytes() for code in codes))
    return Kernel(
        memory,
        tuple(memory.address + entry for entry in entries),
        parts,
        instructions.outputs,
        np.concatenate(order),
        tuple(starts),
    )


@dataclass(frozen=True)
class _Block:
    """What the code of one block of outputs does, in order.

    A step is one tap of one input channel that any output keeps: it loads the tap's input, then multiplies it by each
    of the weights.

    Attributes:
        outputs: output channels.
        weights: index into the block's flattened mask of each kept weight.
        weight_step, weight_output: step and output channel of each kept weight.
        displacements: where each step's load reads, in bytes.
        instructions: what the code is made of.
    """

    outputs: int
    weights: np.ndarray
    weight_step: np.ndarray
    weight_output: np.ndarray
    displacements: np.ndarray
    instructions: InstructionSet

    @classmethod
    def of(cls, mask: np.ndarray, scratch: Scratch, instructions: InstructionSet) -> _Block:
        taps = mask.reshape(len(mask), -1)
        used = np.flatnonzero(taps.any(axis=0))
        step, output = np.nonzero(taps.T[used])
        channel, row, column = np.unravel_index(used, mask.shape[1:])
        places = scratch.offset(channel, row, column)
        return cls(len(mask), output * taps.shape[1] + used[step], step, output, FLOAT * places, instructions)

    @property
    def cost(self) -> int:
        """Instructions in all."""
        multiplies = len(self.weights) * self.instructions.multiply_cost
        return max(len(self.displacements) * self.instructions.load_cost + multiplies, 1)

    def encode(self, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Machine code, and for each part its position there and its first weight."""
        isa = self.instructions
        load_size, multiply_size = isa.load.shape[-1], isa.multiply.shape[-1]
        ends = self._part_ends(parts)
        weight_ends = np.searchsorted(self.weight_step, ends)
        first_weight, first_step = (np.concatenate([[0], at[:-1]]) for at in (weight_ends, ends))
        weights, loads = weight_ends - first_weight, ends - first_step

        begins = [isa.begin[self.outputs]] + [isa.resume[self.outputs]] * (parts - 1)
        store = isa.store[self.outputs]
        heads = np.array([len(begin) for begin in begins])
        # %rsi moves on just before the first weight of every window but the first.
        moves = np.maximum(weights - 1, 0) // isa.window
        loops = heads + loads * load_size + weights * multiply_size + moves * len(isa.advance) + len(store)
        sizes = loops + len(isa.repeat)
        places = np.concatenate([[0], (-(-sizes // ENTRY_ALIGNMENT) * ENTRY_ALIGNMENT).cumsum()])
        bodies = places[:-1] + heads

        code = np.zeros(places[-1], dtype=np.uint8)
        for begin, place, loop, moved in zip(begins, places[:-1], loops, moves, strict=True):
            repeat = isa.repeat.copy()
            rewound = FLOAT * (isa.window // 2 + isa.window * moved)
            _put(repeat, isa.rewind, rewound)
            _put(repeat, isa.back, -(loop + isa.back + 4))
            code[place : place + len(begin)] = begin
            code[place + loop - len(store) : place + loop] = store
            code[place + loop : place + loop + len(repeat)] = repeat

        part = np.searchsorted(weight_ends, np.arange(len(self.weights)), side='right')
        local = np.arange(len(self.weights)) - first_weight[part]
        loaded = self.weight_step + 1 - first_step[part]
        at = bodies[part] + loaded * load_size + local * multiply_size + local // isa.window * len(isa.advance)
        forms = isa.multiply[self.weight_step % isa.slots, self.weight_output]
        near = (local % isa.window - isa.window // 2) * (FLOAT // isa.displacement_unit)
        forms[:, isa.multiply_displacement] = near.astype(np.int8).view(np.uint8)
        code[at[:, None] + np.arange(multiply_size)] = forms
        moved = at[(local > 0) & (local % isa.window == 0)] - len(isa.advance)
        code[moved[:, None] + np.arange(len(isa.advance))] = isa.advance

        step = np.arange(len(self.displacements))
        part = np.searchsorted(ends, step, side='right')
        before = np.searchsorted(self.weight_step, step) - first_weight[part]
        moves = np.maximum(before - 1, 0) // isa.window
        at = bodies[part] + (step - first_step[part]) * load_size + before * multiply_size + moves * len(isa.advance)
        forms = isa.load[step % isa.slots]
        for position, extra in isa.load_displacements:
            displacements = (self.displacements + extra).astype('<i4').view(np.uint8)
            forms[:, position : position + 4] = displacements.reshape(-1, 4)
        code[at[:, None] + np.arange(load_size)] = forms
        return code, places[:-1], first_weight

    def _part_ends(self, parts: int) -> np.ndarray:
        """Step after the last of each part; parts take about equally long."""
        steps = len(self.displacements)
        weights = np.bincount(self.weight_step, minlength=steps)
        total = (weights * self.instructions.multiply_cost + self.instructions.load_cost).cumsum()
        shares = self.cost * np.arange(1, parts) / parts
        return np.append(np.minimum(np.searchsorted(total, shares) + 1, steps), steps)


def _put(code: np.ndarray, position: int, value: int) -> None:
    """Write a number of four bytes."""
    code[position : position + 4] = np.array([value], dtype='<i4').view(np.uint8)
