"""Machine code in this process: LLVM's assembler, and memory that may be executed."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

from llvmlite import binding

from .host import EngineUnavailableError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def new_target_machine() -> binding.TargetMachine:
    """LLVM's code generator for this processor with all of its features. A JIT keeps the one it is given for itself."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
    )


@cache
def _assembler() -> binding.TargetMachine:
    return new_target_machine()


def assemble(lines: list[str]) -> bytes:
    """Machine code of AT&T assembler lines, by LLVM's assembler.

    Instructions of every supported set are accepted, whatever this processor has.
    """
    target = _assembler()
    module = binding.parse_assembly('\n'.join(f'module asm "{line}"' for line in lines))
    module.triple = target.triple
    sections = binding.ObjectFileRef.from_data(target.emit_object(module)).sections()
    return next(section.data() for section in sections if section.name() in (b'.text', '.text', b'__text', '__text'))


class ExecutableMemory:
    """A copy of machine code that can be called; the memory is given back with the object.

    Written first, then made executable and read-only, for systems that refuse memory that is both.

    Attributes:
        address: where the code begins.
        size: bytes of code.

    Raises:
        EngineUnavailableError: the system gives no executable memory.
    """

    def __init__(self, code: bytes) -> None:
        self.size = len(code)
        try:
            self._pages = mmap.mmap(-1, max(self.size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise EngineUnavailableError(f'no memory for {self.size} bytes of code: {error}') from error
        self._pages[: self.size] = code
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        if _libc.mprotect(self.address, self.size, mmap.PROT_READ | mmap.PROT_EXEC):
            raise EngineUnavailableError(f'the system refuses executable memory (errno {ctypes.get_errno()})')
