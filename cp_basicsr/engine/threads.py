"""Shares a job among as many threads as PyTorch uses: PyTorch's own OpenMP threads, where its library can be found.

A second pool of threads would compete with PyTorch's for the processor (OpenMP's threads go on spinning for a while
after their work), and waking a Python thread for each layer takes 60 microseconds where an OpenMP team takes 3.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from .instructions import FLOAT
from .native import Routine, Team

_ALIGNMENT = 4096
_local = threading.local()


def run(routine: Routine, job: ctypes.Structure, pieces: int, scratch_floats: int) -> None:
    """Run a job to its end with ``torch.get_num_threads()`` threads, this one among them.

    Args:
        routine: works on such jobs.
        job: told to the routine.
        pieces: of work; more threads than these would find nothing to do.
        scratch_floats: memory of each thread, aligned to a page.
    """
    size = max(1, min(torch.get_num_threads(), pieces))
    stride = scratch_floats * FLOAT + -(scratch_floats * FLOAT) % _ALIGNMENT
    team = Team(ctypes.addressof(job), _scratch(size * stride), stride)
    library = _openmp()
    if size == 1:
        routine.run(team.job, team.scratch)
    elif library is not None:
        routine.use_thread_number(library.omp_get_thread_num)
        library.GOMP_parallel(routine.member, ctypes.addressof(team), size, 0)
    else:
        _run_in_python_threads(routine, team, size)


def _run_in_python_threads(routine: Routine, team: Team, size: int) -> None:
    pending = [_pool(size - 1).submit(routine.run, team.job, team.scratch + k * team.stride) for k in range(1, size)]
    try:
        routine.run(team.job, team.scratch)
    finally:
        for task in pending:
            # A helper that another network keeps busy has nothing left to do here.
            if not task.cancel():
                task.result()


@cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(helpers, thread_name_prefix='cp_engine')


@cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch has loaded, if it has the entry points of GNU's (LLVM's and Intel's do)."""
    folder = str(Path(torch.__file__).parent)
    try:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in Path('/proc/self/maps').read_text().splitlines()}
    except OSError:
        return None
    for path in sorted(path for path in mapped if path.startswith(folder) and 'omp' in Path(path).name):
        library = ctypes.CDLL(path)
        if all(hasattr(library, name) for name in ('GOMP_parallel', 'omp_get_thread_num')):
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            return library
    return None


def _scratch(size: int) -> int:
    """Address of memory for the threads that this one leads; it only grows."""
    if getattr(_local, 'size', 0) < size:
        _local.memory = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
        _local.size = size
    address = _local.memory.data_ptr()
    return address + -address % _ALIGNMENT
