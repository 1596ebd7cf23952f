"""Compiles the pattern of a layer at one level: multiply-adds for each kept weight, and nothing for the others."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from .geometry import Scratch
from .instructions import FLOAT, InstructionSet
from .machine_code import ExecutableMemory

# Instructions of one part of a block's code, which is run for every pixel of a strip before the next part is. Parts
# that fit into the processor's cache of decoded instructions run at the full rate of the multiply-adds: at 5,400
# instructions a Zen 5 core falls from 289 to 226 GFLOP/s.
PART = 3000
ENTRY_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class Kernel:
    """Straight-line code for one mask.

    A layer's outputs are computed in blocks, as many at once as registers hold sums, and the code of each block in
    ``parts``, each with a share of the input channels. Each part is a function
    ``void(const float *input, const float *weights, float *sums, long vectors)`` for so many vectors of 16 neighbouring
    pixels on one or two rows. The first part writes its sums, the others add to them.

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

    A step is one tap of one input channel, in the order channel, column, row: it loads the input rows that no step
    before it has loaded, then multiplies by each weight that the tap keeps. ``rows`` output rows need the tap's input
    row and, ``stride`` further down, that of the tap for the second output row.

    Attributes:
        outputs: output channels.
        weights: index into the block's flattened mask of each kept weight.
        weight_step, weight_output, weight_slots: step, output channel and (upper, lower) slot of each kept weight.
        load_step, load_displacement: step of each load, and where it reads, in bytes.
        group: steps of one column of taps; a part of the code begins with a whole group, so that no load is missing.
        steps: their number.
        instructions: what the code is made of.
    """

    outputs: int
    weights: np.ndarray
    weight_step: np.ndarray
    weight_output: np.ndarray
    weight_slots: tuple[np.ndarray, np.ndarray]
    load_step: np.ndarray
    load_displacement: np.ndarray
    group: int
    steps: int
    instructions: InstructionSet

    @classmethod
    def of(cls, mask: np.ndarray, scratch: Scratch, instructions: InstructionSet) -> _Block:
        outputs, channels, height, width = mask.shape
        stride, two = scratch.stride, instructions.rows == 2
        kept = mask.transpose(1, 3, 2, 0).reshape(-1, outputs)
        used = kept.any(axis=1).reshape(-1, height)
        # The tap's own row was loaded before if the tap `stride` rows above it loaded it for its second output row.
        above = np.zeros_like(used)
        above[:, stride:] = used[:, : height - stride] if two and stride < height else False
        loads = np.stack([used & ~above, used & two], axis=-1).reshape(-1, 2)
        number = (loads.reshape(-1).cumsum() - 1).reshape(-1, height, 2)
        upper = number[..., 0].copy()
        upper[:, stride:][above[:, stride:]] = number[:, : height - stride, 1][above[:, stride:]]
        slots = [n.reshape(-1) % instructions.slots for n in (upper, number[..., 1])]

        step, output = np.nonzero(kept)
        channel, column, row = np.unravel_index(np.arange(len(kept)), (channels, width, height))
        load_step, second = np.nonzero(loads)
        places = scratch.offset(channel[load_step], row[load_step] + second * stride, column[load_step])
        return cls(
            outputs,
            np.ravel_multi_index((output, channel[step], row[step], column[step]), mask.shape),
            step,
            output,
            (slots[0][step], slots[1][step] if two else np.zeros_like(step)),
            load_step,
            FLOAT * places,
            height,
            len(kept),
            instructions,
        )

    @property
    def cost(self) -> int:
        """Instructions in all."""
        multiplies = len(self.weights) * self.instructions.multiply_cost
        return max(len(self.load_step) * self.instructions.load_cost + multiplies, 1)

    def encode(self, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Machine code, and for each part its position there and its first weight."""
        isa = self.instructions
        load_size, multiply_size = isa.load.shape[-1], isa.multiply.shape[-1]
        ends = self._part_ends(parts)
        weight_ends, load_ends = (np.searchsorted(steps, ends) for steps in (self.weight_step, self.load_step))
        first_weight, first_load = (np.concatenate([[0], at[:-1]]) for at in (weight_ends, load_ends))
        weights, loads = weight_ends - first_weight, load_ends - first_load

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
        loaded = np.searchsorted(self.load_step, self.weight_step, side='right') - first_load[part]
        at = bodies[part] + loaded * load_size + local * multiply_size + local // isa.window * len(isa.advance)
        forms = isa.multiply[(*self.weight_slots, self.weight_output)]
        near = (local % isa.window - isa.window // 2) * (FLOAT // isa.displacement_unit)
        forms[:, isa.multiply_displacement] = near.astype(np.int8).view(np.uint8)
        code[at[:, None] + np.arange(multiply_size)] = forms
        moved = at[(local > 0) & (local % isa.window == 0)] - len(isa.advance)
        code[moved[:, None] + np.arange(len(isa.advance))] = isa.advance

        number = np.arange(len(self.load_step))
        part = np.searchsorted(load_ends, number, side='right')
        before = np.searchsorted(self.weight_step, self.load_step) - first_weight[part]
        moves = np.maximum(before - 1, 0) // isa.window
        at = bodies[part] + (number - first_load[part]) * load_size + before * multiply_size + moves * len(isa.advance)
        forms = isa.load[number % isa.slots]
        for position, extra in isa.load_displacements:
            displacements = (self.load_displacement + extra).astype('<i4').view(np.uint8)
            forms[:, position : position + 4] = displacements.reshape(-1, 4)
        code[at[:, None] + np.arange(load_size)] = forms
        return code, places[:-1], first_weight

    def _part_ends(self, parts: int) -> np.ndarray:
        """Step after the last of each part, at whole groups, so that parts take about equally long."""
        isa, steps = self.instructions, self.steps
        cost = np.bincount(self.load_step, minlength=steps) * isa.load_cost
        cost += np.bincount(self.weight_step, minlength=steps) * isa.multiply_cost
        total = cost.reshape(-1, self.group).sum(axis=1).cumsum()
        shares = total[-1] * np.arange(1, parts) / parts
        return np.append((np.searchsorted(total, shares) + 1) * self.group, steps)


def _put(code: np.ndarray, position: int, value: int) -> None:
    """Write a number of four bytes."""
    code[position : position + 4] = np.array([value], dtype='<i4').view(np.uint8)
