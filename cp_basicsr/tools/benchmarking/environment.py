"""What a benchmark was measured on."""

from __future__ import annotations

import os
from importlib import metadata

from cp_basicsr.tools.report import machine

RUNTIMES = ('onnxruntime', 'openvino')


def environment() -> str:
    """Processor, cores, threads, and versions of what ran, in one line."""
    versions = []
    for name in RUNTIMES:
        try:
            versions.append(f'{name} {metadata.version(name)}')
        except metadata.PackageNotFoundError:
            continue
    return ', '.join([f'{os.cpu_count()} cores', machine(), *versions])
