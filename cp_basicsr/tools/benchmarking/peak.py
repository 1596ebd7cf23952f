"""How fast this machine multiplies, adds and loads at best: loops that do nothing else, on all threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from llvmlite import ir

from cp_basicsr.engine import threads
from cp_basicsr.engine.host import processor_sets
from cp_basicsr.engine.instructions import PIXELS, instruction_set
from cp_basicsr.engine.ir import I64, VECTOR, i64
from cp_basicsr.engine.native import Routine, RoutineSource
from cp_basicsr.engine.paired import PAIRS, added_pairs
from cp_basicsr.engine.vector_math import fused

TERMS = 32  # of operands in memory: a few kilobytes, which stay in the first-level cache
REPEATS = 20_000  # of a piece's loop, 0.1 to 0.3 ms
PIECES = 8  # for each thread
TAPS = 3  # columns from which vectors are loaded in turn, as for a kernel's taps: two of three are unaligned


class _Job(ctypes.Structure):
    """``inputs`` are :data:`TERMS` vectors, ``weights`` as many rows of one for each sum, ``starts`` the first sums."""

    _fields_ = [
        ('inputs', ctypes.c_void_p),
        ('weights', ctypes.c_void_p),
        ('starts', ctypes.c_void_p),
        ('repeats', ctypes.c_int64),
        ('pieces', ctypes.c_int64),
        ('next_piece', ctypes.c_int64),
    ]


class _Loop(RoutineSource):
    """Writes a loop over ``sums`` vectors in registers."""

    def __init__(self, sums: int) -> None:
        self._sums = sums
        super().__init__(_Job, 'pieces', 'next_piece')

    def prepare(self) -> None:
        pass

    def work(self, piece: ir.Value) -> None:
        b = self.b
        places = [i64(PIXELS * k) for k in range(self._sums)]
        starts = [b.vector(b.at(self.fields['starts'], place), VECTOR) for place in places]
        before = b.block
        body, after = (b.append_basic_block(name) for name in ('body', 'after'))
        b.branch(body)
        b.position_at_end(body)
        index = b.phi(I64)
        index.add_incoming(i64(0), before)
        totals = [b.phi(VECTOR) for _ in starts]
        values = self._step(b.and_(index, i64(TERMS - 1)), totals)
        for total, start, value in zip(totals, starts, values, strict=True):
            total.add_incoming(start, before)
            total.add_incoming(value, body)
        following = b.add(index, i64(1))
        index.add_incoming(following, body)
        b.cbranch(b.icmp_signed('<', following, self.fields['repeats']), body, after)
        b.position_at_end(after)
        for place, value in zip(places, values, strict=True):
            b.put_vector(value, b.at(self.scratch, place))

    def _step(self, term: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        """The sums after one more pass over them."""
        raise NotImplementedError


class _Products(_Loop):
    """Adds a product to each sum, operands in registers."""

    kind = VECTOR
    loads = False

    def prepare(self) -> None:
        # One weight serves all sums: registers hold no more.
        self._kept = self._operands(i64(0), 1)

    def _step(self, term: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        x, weights = self._operands(term, self._sums) if self.loads else self._kept
        weights = weights * (self._sums // len(weights))
        return [self._added(total, x, weight) for total, weight in zip(totals, weights, strict=True)]

    def _operands(self, term: ir.Value, count: int) -> tuple[ir.Value, list[ir.Value]]:
        b, kind = self.b, self.kind
        x = b.vector(b.at(self.fields['inputs'], b.mul(term, i64(PIXELS))), kind)
        first = b.at(self.fields['weights'], b.mul(term, i64(self._sums)))
        return x, [b.splat(b.element(first, i64(k), kind.element), kind) for k in range(count)]

    def _added(self, total: ir.Value, inputs: ir.Value, weights: ir.Value) -> ir.Value:
        return fused(self.b, inputs, weights, total)


class _LoadedProducts(_Products):
    """The same with operands from memory, as in the engine's code: an input for all sums, a weight for each."""

    loads = True


class _PairedProducts(_Products):
    """Adds two products of bf16 to each sum."""

    kind = PAIRS

    def _added(self, total: ir.Value, inputs: ir.Value, weights: ir.Value) -> ir.Value:
        return added_pairs(self.b, total, inputs, weights)


class _Loads(_Loop):
    """Loads a vector for each sum, and does with it what costs least."""

    def _step(self, term: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        b = self.b
        row = b.at(self.fields['inputs'], b.mul(b.and_(term, i64(TERMS // 2 - 1)), i64(PIXELS)))
        read = [b.vector(b.at(row, i64(PIXELS * (k // TAPS) + k % TAPS)), PAIRS) for k in range(self._sums)]
        return [
            b.bitcast(b.xor(b.bitcast(total, PAIRS), values), VECTOR)
            for total, values in zip(totals, read, strict=True)
        ]


@dataclass(frozen=True)
class Peak:
    """A loop whose speed is a limit of the machine.

    Attributes:
        name: as a row of a table.
        source: writes it, given the number of sums.
        each: of ``unit``, done for each sum in each pass.
        unit: 'MAC' or 'load' (of a vector of 16 float32).
    """

    name: str
    source: Callable[[int], RoutineSource]
    each: int
    unit: str

    @property
    def count(self) -> int:
        """What one run does, in units."""
        return torch.get_num_threads() * PIECES * REPEATS * _sums() * self.each

    def prepare(self) -> Callable[[], None]:
        """What runs the loop on ``torch.get_num_threads()`` threads.

        Raises:
            EngineUnavailableError: no compiled code can run here.
        """
        sums = _sums()
        routine = Routine(self.source(sums))
        # Zeros: values do not matter for the time, but for denormals.
        parts = [np.zeros(size, np.uint32) for size in (TERMS * PIXELS, TERMS * sums, PIXELS * sums)]

        def run() -> None:
            pieces = torch.get_num_threads() * PIECES
            job = _Job(*(part.ctypes.data for part in parts), REPEATS, pieces)
            threads.run(routine, job, pieces, sums * PIXELS)

        return run


def _sums() -> int:
    """As many as the engine keeps in this processor's registers."""
    return instruction_set(processor_sets()[0]).outputs


MACS = {
    'fp32': Peak('float32 multiply-adds, all in registers', _Products, PIXELS, 'MAC'),
    'bf16': Peak('bf16 multiply-adds in pairs, all in registers', _PairedProducts, 2 * PIXELS, 'MAC'),
}
LOADED_MACS = Peak('float32 multiply-adds, a weight loaded for each', _LoadedProducts, PIXELS, 'MAC')
LOADS = Peak('loads of 16 float32, two of three unaligned', _Loads, 1, 'load')
