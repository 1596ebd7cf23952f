"""As many threads as PyTorch uses, each with scratch memory of its own."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from .driver import driver
from .geometry import FLOAT
from .job import Job

_ALIGNMENT = 4096
_local = threading.local()


def run(job: Job, scratch_floats: int) -> None:
    """Run a job to its end with ``torch.get_num_threads()`` threads, this one among them."""
    helpers = min(torch.get_num_threads(), job.band_count) - 1
    pending = [_pool(helpers).submit(_work, job, scratch_floats) for _ in range(helpers)]
    try:
        _work(job, scratch_floats)
    finally:
        for task in pending:
            # A helper that another network keeps busy has nothing left to do here.
            if not task.cancel():
                task.result()


def _work(job: Job, scratch_floats: int) -> None:
    driver()(ctypes.addressof(job), _scratch(scratch_floats))


@cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(helpers, thread_name_prefix='cp_engine')


def _scratch(floats: int) -> int:
    """Address of this thread's scratch memory; it only grows."""
    if getattr(_local, 'floats', 0) < floats:
        _local.memory = torch.empty(floats * FLOAT + _ALIGNMENT, dtype=torch.uint8)
        _local.floats = floats
    address = _local.memory.data_ptr()
    return address + -address % _ALIGNMENT
