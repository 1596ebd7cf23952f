"""Writing results down, and what they were measured on."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from cp_basicsr.data.files import write_whole
from cp_basicsr.engine.host import EngineUnavailableError, chosen_set


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as :func:`~cp_basicsr.data.files.write_whole` does."""
    write_whole(path, text.encode())


def file_name(title: str) -> str:
    """A title as part of a path."""
    return re.sub(r'[^\w.-]+', '_', title)


def machine() -> str:
    """What the seconds were measured on."""
    if torch.cuda.is_available():
        return f'PyTorch {torch.__version__}, {torch.cuda.get_device_name()}, float32, reference path, batch 1'
    try:
        engine = f'engine ({chosen_set()})'
    except EngineUnavailableError:
        engine = 'reference path'
    threads = torch.get_num_threads()
    processor = f'{_processor()}, {threads} thread{"s" if threads > 1 else ""}'
    return f'PyTorch {torch.__version__}, {processor}, float32, {engine}, batch 1'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return 'CPU'
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), 'CPU')
