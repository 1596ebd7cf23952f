"""The few instructions that a sparse kernel is made of, as tables of bytes for each instruction set.

LLVM's assembler writes each form once; displacements are then filled in by the thousand, because an assembler that
reads text takes seconds for a network of a million kept weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from .machine_code import assemble

PIXELS = 16  # outputs along a row that one pass of a kernel computes, in every instruction set
FLOAT = 4  # bytes
# A displacement that needs four bytes, and one that needs a byte; both are overwritten.
FAR, NEAR = 0x12345678, 4


@dataclass(frozen=True)
class InstructionSet:
    """Forms of the instructions, with ``%rdi`` the input, ``%rsi`` the weights, ``%rdx`` the sums, ``%rcx`` a count.

    A kernel computes :data:`PIXELS` neighbouring outputs for ``outputs`` channels at once. With AVX-512 a multiply-add
    takes its weight from memory itself: 7 bytes of code for each weight. (Loading each weight once for two rows of
    pixels needs half the loads and, on Zen 5, runs 10 % faster from the caches of the core, but takes 19 bytes; where
    levels alternate from tile to tile, code then comes from the third-level cache: a 64 x 64 x 3 x 3 layer at random
    levels took 11.5 ms instead of 9.3.)

    Attributes:
        name: 'avx512' or 'avx2'.
        outputs: output channels whose sums fit into the registers at once.
        slots: input vectors of :data:`PIXELS` values that are held at once.
        load: uint8 ``[slots, bytes]``: input -> slot, with displacements of four bytes at ``load_displacements``.
        load_displacements: byte position within the form and what is added to the displacement there.
        multiply: uint8 ``[slots, outputs, bytes]``: sum of an output += slot * weight, with a displacement of one byte
            at ``multiply_displacement``.
        multiply_displacement: byte position within the form.
        displacement_unit: bytes that one step of that one-byte displacement stands for.
        load_cost, multiply_cost: instructions of a form.
        advance: moves ``%rsi`` on by ``window`` weights.
        window: weights that the one-byte displacement reaches, -128 to 127 units.
        begin: for each number of outputs, sums = 0 and ``%rsi`` to the middle of its first window.
        resume: the same with sums = memory.
        store: for each number of outputs, sums -> memory ``[outputs, PIXELS]``.
        repeat: ``%rsi`` back by a displacement of four bytes at ``rewind``; input and sums on to the next pixels; to
            the beginning, a distance of four bytes at ``back``, until the count is used up; return.
        rewind, back: byte positions within ``repeat``.
        paired: products of Winograd's convolution are taken in bf16, of two channels at once.
    """

    name: str
    outputs: int
    slots: int
    load: np.ndarray
    load_displacements: tuple[tuple[int, int], ...]
    multiply: np.ndarray
    multiply_displacement: int
    displacement_unit: int
    load_cost: int
    multiply_cost: int
    advance: np.ndarray
    window: int
    begin: tuple[np.ndarray, ...]
    resume: tuple[np.ndarray, ...]
    store: tuple[np.ndarray, ...]
    repeat: np.ndarray
    rewind: int
    back: int
    paired: bool = False


def _code(lines: list[str]) -> np.ndarray:
    return np.frombuffer(assemble(lines), dtype=np.uint8)


def _forms(lines: list[list[str]]) -> np.ndarray:
    """Forms of equal length, one a row."""
    return _code([line for form in lines for line in form]).reshape(len(lines), -1)


def _frame(middle: int, registers: list[list[str]], places: list[list[int]]) -> dict[str, object]:
    """What stands around the taps; ``registers[o]`` hold the sums of output ``o``, to be stored at ``places[o]``."""
    start = [f'addq ${middle},%rsi']
    clear, fetch, store = [], [], []
    for names, offsets in zip(registers, places, strict=True):
        xor = 'vpxord' if names[0].startswith('%zmm') else 'vpxor'
        clear.append([f'{xor} {r},{r},{r}' for r in names])
        fetch.append([f'vmovups {at}(%rdx),{r}' for r, at in zip(names, offsets, strict=True)])
        store.append([f'vmovups {r},{at}(%rdx)' for r, at in zip(names, offsets, strict=True)])
    counts = range(len(registers) + 1)
    pixels = FLOAT * PIXELS * len(registers)
    rewind, step = [f'subq ${FAR},%rsi'], [f'addq ${FLOAT * PIXELS},%rdi', f'addq ${pixels},%rdx', 'decq %rcx']
    jump = _code([*rewind, *step, f'jnz .-{FAR}'])
    return {
        'begin': tuple(_code(start + sum(clear[:n], [])) for n in counts),
        'resume': tuple(_code(start + sum(fetch[:n], [])) for n in counts),
        'store': tuple(_code(sum(store[:n], [])) if n else np.empty(0, np.uint8) for n in counts),
        'repeat': np.concatenate([jump, _code(['vzeroupper', 'ret'])]),
        'rewind': len(_code(rewind)) - 4,
        'back': len(jump) - 4,
    }


def _avx512() -> InstructionSet:
    outputs, slots = 24, 8
    sums = [[f'%zmm{o}'] for o in range(outputs)]
    slot = [f'%zmm{outputs + index}' for index in range(slots)]
    multiply = [[f'vfmadd231ps {NEAR}(%rsi){{1to16}},{x},{r[0]}'] for x in slot for r in sums]
    return InstructionSet(
        name='avx512',
        outputs=outputs,
        slots=slots,
        load=_forms([[f'vmovups {FAR}(%rdi),{x}'] for x in slot]),
        load_displacements=((6, 0),),
        multiply=_forms(multiply).reshape(slots, outputs, -1),
        multiply_displacement=6,
        displacement_unit=FLOAT,
        load_cost=1,
        multiply_cost=1,
        advance=_code(['addq $1024,%rsi']),
        window=256,
        **_frame(512, sums, [[64 * o] for o in range(outputs)]),
    )


def _avx2() -> InstructionSet:
    outputs = 6
    sums = [[f'%ymm{2 * o + half}' for half in (0, 1)] for o in range(outputs)]
    multiply = [
        [f'vbroadcastss {NEAR}(%rsi),%ymm14'] + [f'vfmadd231ps %ymm14,%ymm1{2 + half},{r[half]}' for half in (0, 1)]
        for r in sums
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
        load_cost=2,
        multiply_cost=3,
        advance=_code(['addq $256,%rsi']),
        window=64,
        **_frame(128, sums, [[64 * o + 32 * half for half in (0, 1)] for o in range(outputs)]),
    )


@cache
def instruction_set(name: str) -> InstructionSet:
    """The forms of 'avx512', 'avx2' or 'avx512_bf16'; this processor need not have them."""
    if name == 'avx512_bf16':
        return replace(instruction_set('avx512'), paired=True)
    return {'avx512': _avx512, 'avx2': _avx2}[name]()
