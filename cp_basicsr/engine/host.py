"""What this processor can run: the instruction set that code is made for, or why none is."""

from __future__ import annotations

import os
import platform
from functools import cache

ENGINE_VARIABLE = 'CP_ENGINE'
REFERENCE = 'reference'
COMPILE = 'compile'  # on a GPU, whole images and cut tiles go through torch.compile
# Of both, the first that the processor has is taken. Zen 4 and Cascade Lake run either; AVX-512 is the faster on both.
NEEDED_FEATURES = {'avx512': ('avx512f',), 'avx2': ('avx2', 'fma')}
NAMES = (REFERENCE, *NEEDED_FEATURES, COMPILE)


class EngineNameError(ValueError):
    """``CP_ENGINE`` names what no machine has; the message says what is allowed."""


class EngineUnavailableError(RuntimeError):
    """No compiled code can run here; the message says why."""


@cache
def processor_sets() -> tuple[str, ...]:
    """Instruction sets of this processor that the engine makes code for, the best first.

    Raises:
        EngineUnavailableError: another architecture or operating system, neither AVX-512F nor AVX2 with FMA, or an
            llvmlite that cannot be imported.
    """
    if platform.machine().lower() not in ('x86_64', 'amd64'):
        raise EngineUnavailableError(f'the processor is {platform.machine() or "unknown"}, code is made for x86-64')
    if os.name != 'posix':
        raise EngineUnavailableError(f'code follows the calling convention of Linux and macOS, this is {os.name}')
    try:
        from llvmlite import binding
    except (ImportError, OSError) as error:  # OSError: its library is there and does not load
        raise EngineUnavailableError(f'llvmlite cannot be imported ({error})') from error

    features = binding.get_host_cpu_features()
    sets = tuple(name for name, needed in NEEDED_FEATURES.items() if all(features.get(key) for key in needed))
    if not sets:
        raise EngineUnavailableError('the processor has neither AVX-512F nor AVX2 with FMA')
    return sets


def asked_for() -> str:
    """What ``CP_ENGINE`` names; empty: nothing.

    Raises:
        EngineNameError: there is no such engine on any machine.
        EngineUnavailableError: ``CP_ENGINE=reference``.
    """
    wanted = os.environ.get(ENGINE_VARIABLE, '')
    if wanted and wanted not in NAMES:
        raise EngineNameError(
            f'the environment variable {ENGINE_VARIABLE} is {wanted!r}; allowed: {", ".join(NAMES)}, or unset it.'
        )
    if wanted == REFERENCE:
        raise EngineUnavailableError(f'{ENGINE_VARIABLE}={REFERENCE}')
    return wanted


def chosen_set() -> str:
    """The instruction set to use: the best of the processor, or the one that ``CP_ENGINE`` names.

    Raises:
        EngineNameError: there is no such engine on any machine.
        EngineUnavailableError: ``CP_ENGINE=reference``, or it names a set that the processor lacks.
    """
    wanted, sets = asked_for(), processor_sets()
    if wanted and wanted not in sets:
        raise EngineUnavailableError(
            f'{ENGINE_VARIABLE}={wanted} is none of {REFERENCE}, {", ".join(sets)}, which this processor can run'
        )
    return wanted or sets[0]
