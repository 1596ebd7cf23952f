"""The few instructions that a sparse kernel is made of, as tables of bytes for each instruction set.

LLVM's assembler writes each form once; displacements are then filled in by the thousand, because an assembler that
reads text takes seconds for a network of a million kept weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .machine_code import assemble

PIXELS = 16  # outputs along a row that one pass of a kernel computes, in every instruction set
FLOAT = 4  # bytes


@dataclass(frozen=True)
class InstructionSet:
    """Forms of the instructions, with ``%rdi`` the input, ``%rsi`` the weights and ``%rdx`` the sums.

    Attributes:
        name: 'avx512' or 'avx2'.
        outputs: output channels whose sums fit into the registers at once.
        slots: input vectors of :data:`PIXELS` values that are held at once.
        load: uint8 ``[slots, bytes]``: input -> slot, with displacements of four bytes at ``load_displacements``.
        load_displacements: byte position within the form and what is added to the displacement there.
        multiply: uint8 ``[slots, outputs, bytes]``: sum of an output += slot * weight, with a displacement of one byte
            at ``multiply_displacement``.
        displacement_unit: bytes that one step of that one-byte displacement stands for.
        advance: moves ``%rsi`` on by ``window`` weights.
        window: weights that the one-byte displacement reaches, -128 to 127 units.
        begin: for each number of outputs, sums = 0 and ``%rsi`` to the middle of its first window.
        end: for each number of outputs, sums -> memory, return.
    """

    name: str
    outputs: int
    slots: int
    load: np.ndarray
    load_displacements: tuple[tuple[int, int], ...]
    multiply: np.ndarray
    multiply_displacement: int
    displacement_unit: int
    advance: np.ndarray
    window: int
    begin: tuple[np.ndarray, ...]
    end: tuple[np.ndarray, ...]


def _code(lines: list[str]) -> np.ndarray:
    return np.frombuffer(assemble(lines), dtype=np.uint8)


def _forms(lines: list[list[str]]) -> np.ndarray:
    """Forms of equal length, one a row."""
    return _code([line for form in lines for line in form]).reshape(len(lines), -1)


def _frame(outputs: int, middle: int, clear: list[list[str]], store: list[list[str]]) -> dict[str, tuple]:
    counts = range(outputs + 1)
    return {
        'begin': tuple(_code([f'addq ${middle},%rsi'] + sum(clear[:n], [])) for n in counts),
        'end': tuple(_code(sum(store[:n], []) + ['vzeroupper', 'ret']) for n in counts),
    }


# A displacement that needs four bytes, and one that needs a byte; both are overwritten.
FAR, NEAR = 0x12345678, 4


def _avx512() -> InstructionSet:
    outputs, slots = 24, 8
    slot = [f'%zmm{outputs + index}' for index in range(slots)]
    multiply = [[f'vfmadd231ps {NEAR}(%rsi){{1to16}},{x},%zmm{o}'] for x in slot for o in range(outputs)]
    return InstructionSet(
        name='avx512',
        outputs=outputs,
        slots=slots,
        load=_forms([[f'vmovups {FAR}(%rdi),{x}'] for x in slot]),
        load_displacements=((6, 0),),
        multiply=_forms(multiply).reshape(slots, outputs, -1),
        multiply_displacement=6,
        displacement_unit=FLOAT,
        advance=_code(['addq $1024,%rsi']),
        window=256,
        **_frame(
            outputs,
            512,
            [[f'vpxord %zmm{o},%zmm{o},%zmm{o}'] for o in range(outputs)],
            [[f'vmovups %zmm{o},{64 * o}(%rdx)'] for o in range(outputs)],
        ),
    )


def _avx2() -> InstructionSet:
    # Two vectors of 8 pixels for each sum, so that a broadcast weight serves two multiply-adds.
    outputs = 6
    multiply = [
        [f'vbroadcastss {NEAR}(%rsi),%ymm14'] + [f'vfmadd231ps %ymm14,%ymm1{2 + h},%ymm{2 * o + h}' for h in (0, 1)]
        for o in range(outputs)
    ]
    return InstructionSet(
        name='avx2',
        outputs=outputs,
        slots=1,
        load=_forms([[f'vmovups {FAR}(%rdi),%ymm12', f'vmovups {FAR}(%rdi),%ymm13']]),
        load_displacements=((4, 0), (12, 32)),
        multiply=_forms(multiply).reshape(1, outputs, -1),
        multiply_displacement=5,
        displacement_unit=1,
        advance=_code(['addq $256,%rsi']),
        window=64,
        **_frame(
            outputs,
            128,
            [[f'vxorps %ymm{2 * o + h},%ymm{2 * o + h},%ymm{2 * o + h}' for h in (0, 1)] for o in range(outputs)],
            [[f'vmovups %ymm{2 * o + h},{64 * o + 32 * h}(%rdx)' for h in (0, 1)] for o in range(outputs)],
        ),
    )


@cache
def instruction_set(name: str) -> InstructionSet:
    """The forms of an instruction set, 'avx512' or 'avx2'; this processor need not have it."""
    return {'avx512': _avx512, 'avx2': _avx2}[name]()
