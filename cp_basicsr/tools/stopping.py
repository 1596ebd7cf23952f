"""Being stopped by a batch system's time limit, or by `kill`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATED = 143  # 128 + SIGTERM, as shells have it


@contextmanager
def termination_as_exit() -> Iterator[None]:
    """Within the block SIGTERM ends the program by an exception, so that half-written files and children are removed.

    For the main thread, as Python's signal handlers are.

    Raises:
        SystemExit: with status 143, when the signal comes.
    """
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
