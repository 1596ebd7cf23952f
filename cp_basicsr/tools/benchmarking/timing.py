"""Timing of several contenders on a machine whose speed drifts: in turn, in rounds, medians over the rounds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from basicsr.utils import get_root_logger
from tqdm import tqdm

BUSY = 0.5  # load for each core above which timings are doubtful
DISTURBED = 0.05  # share of the machine's processor time that others may take during a sample
SHORT = 0.2  # seconds that a short contender is repeated for in each round
PAUSE = 0.3  # seconds, between looks at a machine that is busy with something else


@dataclass(frozen=True)
class Timer:
    """How to time.

    Attributes:
        rounds: how often each contender's turn comes.
        patience: seconds in all to wait for other processes to leave the machine alone; a sample that they disturbed
            is taken again. (Known on Linux only.) When it is used up, disturbed samples count, and the log says so.
    """

    rounds: int
    patience: float = 0.0

    def interleaved(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each contender in each round; every round runs all of them, so that drift hits all alike.

        Each contender runs once beforehand. In a round it runs for :data:`SHORT` seconds, at least once, and the median
        counts; the first run after another contender is left out where it is short, for it finds cold caches and, for
        some milliseconds, another runtime's threads still spinning. The round's first contender changes.
        """
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        names = list(runs)
        disturbed, patience = 0, self.patience
        for index in tqdm(range(self.rounds), unit='round', leave=False):
            start = index % len(names)
            for name in names[start:] + names[:start]:
                sample, others, patience = _sample(runs[name], patience)
                seconds[name].append(sample)
                disturbed += others > DISTURBED
        if disturbed:
            get_root_logger().warning(
                f'{disturbed} of {self.rounds * len(names)} samples were taken while other processes used more than '
                f'{100 * DISTURBED:.0f} % of the processors: timings are too long and uneven. Repeat this measurement.'
            )
        return seconds


def _sample(run: Callable[[], object], patience: float) -> tuple[float, float, float]:
    """Seconds of a run, the share that others took meanwhile, and the patience left."""
    while True:
        before = _clocks()
        seconds = _repeated(run)
        others = _others(before)
        if others <= DISTURBED or patience <= 0:
            return seconds, others, patience
        start = time.perf_counter()
        while others > DISTURBED and time.perf_counter() - start < patience:
            before = _clocks()
            time.sleep(PAUSE)
            others = _others(before)
        patience -= time.perf_counter() - start + seconds


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


def _others(before: tuple[float, float, float]) -> float:
    """Share of the machine's processor time that other processes have taken since; 0 where it is unknown."""
    busy, own, wall = (end - start for end, start in zip(_clocks(), before, strict=True))
    return 0.0 if math.isnan(busy) else max(busy - own, 0.0) / (wall * (os.cpu_count() or 1))


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
