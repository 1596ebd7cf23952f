"""Writing results down, and what they were measured on."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from cp_basicsr.data.files import write_whole
from cp_basicsr.engine.accelerator import asked_to_compile
from cp_basicsr.engine.host import EngineUnavailableError, chosen_set
from cp_basicsr.options import OptionError
from cp_basicsr.precision import DEFAULT_PRECISION, PRECISIONS


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as :func:`~cp_basicsr.data.files.write_whole` does."""
    write_whole(path, text.encode())


def make_folder_of(path: Path) -> None:
    """Make the folder that a result is to be written to: before it is measured, not after.

    Raises:
        OptionError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f'{path} cannot be written ({error}); name another file.') from error


def file_name(title: str) -> str:
    """A title as part of a path."""
    return re.sub(r'[^\w.-]+', '_', title)


def machine(precision: str = DEFAULT_PRECISION) -> str:
    """What the seconds were measured on, and in which precision."""
    dtype = str(PRECISIONS[precision] or torch.float32).removeprefix('torch.')
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        where = f'{_processor()}, {threads} thread{"s" if threads > 1 else ""}'
    return f'PyTorch {torch.__version__}, {where}, {dtype}, {_engine(precision)}, batch 1'


def _engine(precision: str) -> str:
    try:
        if torch.cuda.is_available():
            return f'engine ({"torch.compile" if asked_to_compile() else "eager"})'
        return f'engine ({chosen_set(precision)})'
    except EngineUnavailableError:
        return 'reference path'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return 'CPU'
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), 'CPU')
