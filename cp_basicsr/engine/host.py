"""What this processor can run: the instruction set that code is made for, or why none is."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from cp_basicsr.options import OptionError
from cp_basicsr.precision import DEFAULT_PRECISION

ENGINE_VARIABLE = 'CP_ENGINE'
REFERENCE = 'reference'
COMPILE = 'compile'  # on a GPU, whole images and cut tiles go through torch.compile
# Of both, the first that the processor has is taken. Zen 4 and Cascade Lake run either; AVX-512 is the faster on both.
NEEDED_FEATURES = {'avx512': ('avx512f',), 'avx2': ('avx2', 'fma')}
NAMES = (REFERENCE, *NEEDED_FEATURES, COMPILE)
# Sets that have bf16 besides, what they are called then, and the feature that they need.
BF16_SETS = {'avx512': ('avx512_bf16', 'avx512bf16')}


class EngineNameError(OptionError):
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
    features = _features()
    sets = tuple(name for name, needed in NEEDED_FEATURES.items() if all(features.get(key) for key in needed))
    if not sets:
        raise EngineUnavailableError('the processor has neither AVX-512F nor AVX2 with FMA')
    return sets


@cache
def processor_name() -> str:
    """LLVM's name of this processor, ``znver4`` say.

    Raises:
        EngineUnavailableError: llvmlite cannot be imported.
    """
    return _llvm().get_host_cpu_name()


def _features() -> Mapping[str, bool]:
    return _llvm().get_host_cpu_features()


def _llvm() -> ModuleType:
    try:
        from llvmlite import binding
    except (ImportError, OSError) as error:  # OSError: its library is there and does not load
        raise EngineUnavailableError(f'llvmlite cannot be imported ({error})') from error
    return binding


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


def chosen_set(precision: str = DEFAULT_PRECISION) -> str:
    """The instruction set to use: the best of the processor, or the one that ``CP_ENGINE`` names.

    Args:
        precision: with 'bf16', the set with bf16 instructions.

    Raises:
        EngineNameError: there is no such engine on any machine.
        EngineUnavailableError: ``CP_ENGINE=reference``, it names a set that the processor lacks, or code cannot compute
            in this precision.
    """
    wanted, sets = asked_for(), processor_sets()
    if wanted and wanted not in sets:
        raise EngineUnavailableError(
            f'{ENGINE_VARIABLE}={wanted} is none of {REFERENCE}, {", ".join(sets)}, which this processor can run'
        )
    name = wanted or sets[0]
    if precision == DEFAULT_PRECISION:
        return name
    if precision == 'bf16' and name in BF16_SETS:
        with_bf16, feature = BF16_SETS[name]
        if _features().get(feature):
            return with_bf16
    raise EngineUnavailableError(f'{precision} is asked for, {name} code of this processor computes in fp32')


def set_for(x: Tensor, precision: str = DEFAULT_PRECISION) -> str:
    """The instruction set of code that computes with ``x``; see :func:`chosen_set`.

    Raises:
        EngineNameError: there is no such engine on any machine.
        EngineUnavailableError: as :func:`chosen_set`; also where ``x`` is not float32 in this machine's memory.
    """
    if x.device.type != 'cpu' or x.dtype != torch.float32:
        raise EngineUnavailableError(f'the input is {x.dtype} on {x.device}, code is made for float32 on cpu')
    return chosen_set(precision)


def check_mode(module: nn.Module) -> None:
    """Refuse to run ``module`` by other means than PyTorch's where more than its output is wanted.

    Raises:
        EngineUnavailableError: gradients are on, it is in training mode, or its operations are being recorded.
    """
    if module.training or torch.is_grad_enabled():
        raise EngineUnavailableError(
            'gradients are on (wrap the call in torch.inference_mode()) or the network is in training mode'
        )
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        raise EngineUnavailableError('PyTorch traces the network')
