"""Timing of several contenders on a machine whose speed drifts: in turn, in rounds, medians over the rounds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from basicsr.utils import get_root_logger
from tqdm import tqdm

BUSY = 0.5  # load for each core above which timings are doubtful
DISTURBED = 0.05  # share of the machine that others may take
SHORT = 0.2  # seconds that a short contender is repeated for in each round


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; every round runs all of them, so that drift hits all alike.

    Each contender has run once before. In a round it runs for :data:`SHORT` seconds, at least once, and the median
    counts; the first run after another contender is left out where it is short, for it finds cold caches and, for some
    milliseconds, another runtime's threads still spinning. The round's first contender changes.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    with _warned_of_others():
        for index in tqdm(range(rounds), unit='round', leave=False):
            start = index % len(names)
            for name in names[start:] + names[:start]:
                seconds[name].append(_repeated(runs[name]))
    return seconds


def _repeated(run: Callable[[], object]) -> float:
    samples = [seconds_of(run)]
    if samples[0] < SHORT:
        samples = []
        end = time.perf_counter() + SHORT
        while not samples or time.perf_counter() < end:
            samples.append(seconds_of(run))
    return median(samples)


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds that one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def log_load() -> float:
    """Log the load of this machine before timing, as a warning where it is too high for exact figures; return it."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    logger = get_root_logger()
    logger.info(f'Load average of the last minute: {load:.2f} on {cores} cores.')
    if load > BUSY * cores:
        logger.warning(
            f'The load is above {BUSY:g} a core: something else is running, and timings will be too long and uneven. '
            'Stop it, or wait until it is done.'
        )
    return load


@contextmanager
def _warned_of_others() -> Iterator[None]:
    """Warn if other processes took much of the machine within the block (where the system tells: Linux)."""
    before = _clocks()
    yield
    busy, own, wall = (end - start for end, start in zip(_clocks(), before, strict=True))
    share = max(busy - own, 0.0) / (wall * (os.cpu_count() or 1))
    if share > DISTURBED:
        get_root_logger().warning(
            f'Other processes took {100 * share:.0f} % of the processor time during this measurement: its timings are '
            'too long and uneven. Repeat it.'
        )


def _clocks() -> tuple[float, float, float]:
    """Seconds that all processors have been busy (NaN: unknown), that this process has used, and that have passed."""
    try:
        first = Path('/proc/stat').read_text().splitlines()[0].split()
    except OSError:
        busy = math.nan
    else:
        user, nice, system, _, _, irq, softirq, steal = map(int, first[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
    return busy, time.process_time(), time.perf_counter()
