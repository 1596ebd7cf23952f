"""How cost grows: with the size of the image, with density, with threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from basicsr.utils import get_root_logger

from .networks import LQ_720P, Network
from .rivals import RIVALS
from .timing import Timer

M = 8
LEVELS = tuple(range(1, M + 1))
HALF = LEVELS.index(M // 2)
MEGAPIXELS = (0.1, 0.25, 0.5, 1, 2, 4, 8)  # of output
ASPECT = 16 / 9
# The rival whose threads and input size can be changed at once.
RIVAL = next(rival for rival in RIVALS if rival.key == 'channels_last')

Points = list[tuple[float, float]]
Curves = dict[str, dict[str, Points]]


def size_for(megapixels: float, scale: int, multiple: int) -> tuple[int, int]:
    """Height and width of an input near 16:9 whose output has about so many megapixels, in whole multiples."""
    height = math.sqrt(megapixels * 1e6 / ASPECT) / scale
    return tuple(max(round(side / multiple), 1) * multiple for side in (height, height * ASPECT))


def scaling(
    network: Network, timer: Timer, megapixels: Sequence[float] = MEGAPIXELS, size: tuple[int, int] = LQ_720P
) -> Curves:
    """Median seconds with M = 8 and N = 1 to 8.

    Args:
        network: what is timed.
        timer: how to time.
        megapixels: of the output, for the curve against image size.
        size: of the input, pixels, for the curves against density and threads.

    Returns:
        By the label of the horizontal axis, by the name of a curve, its points.
    """
    net = network.build(LEVELS, M)
    return {
        'megapixels of output': _against_size(network, net, timer, megapixels),
        f'density, input {size[1]} x {size[0]}': _against_density(network, net, timer, size),
        f'threads, input {size[1]} x {size[0]}': _against_threads(network, net, timer, size),
    }


def _against_size(network: Network, net: Any, timer: Timer, megapixels: Sequence[float]) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for size in (size_for(each, network.scale, net.multiple) for each in megapixels):
        pixels = size[0] * size[1] * network.scale**2 / 1e6
        _add(lines, pixels, _runs(network, net, size, (net.pattern.densest, HALF, 0)), timer)
    return lines


def _against_density(network: Network, net: Any, timer: Timer, size: tuple[int, int]) -> dict[str, Points]:
    seconds = timer.interleaved(_runs(network, net, size, range(len(LEVELS))))
    dense = median(seconds.pop(RIVAL.name))
    points = [(n / M, median(seconds[_name(net, level)])) for level, n in enumerate(LEVELS)]
    return {'ours': points, f'{RIVAL.name}, dense': [(points[0][0], dense), (1.0, dense)]}


def _against_threads(network: Network, net: Any, timer: Timer, size: tuple[int, int]) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    most = torch.get_num_threads()
    for threads in sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most}):
        with _threads(threads):
            _add(lines, threads, _runs(network, net, size, (net.pattern.densest, HALF, 0)), timer)
    return lines


def _runs(network: Network, net: Any, size: tuple[int, int], levels: Sequence[int]) -> dict[str, Callable[[], object]]:
    x = network.sample(size, net.multiple)
    runs = {_name(net, level): (lambda level=level: net(x, level=level)) for level in levels}
    return {RIVAL.name: RIVAL.prepare(net.bake(-1), x), **runs}


def _name(net: Any, level: int) -> str:
    return f'ours, {net.labels[level]}'


def _add(lines: dict[str, Points], position: float, runs: dict[str, Callable[[], object]], timer: Timer) -> None:
    """One more point on each curve."""
    for name, seconds in timer.interleaved(runs).items():
        lines.setdefault(name, []).append((position, median(seconds)))
        get_root_logger().info(f'{name} at {position:g}: {1e3 * median(seconds):.1f} ms')


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_markdown(curves: Curves) -> str:
    """One table for each horizontal axis: milliseconds of each curve."""
    tables = []
    for label, lines in curves.items():
        positions = sorted({position for points in lines.values() for position, _ in points})
        rows = [[label, *(f'{position:.3g}' for position in positions)], ['---', *['---:'] * len(positions)]]
        for name, points in lines.items():
            at = dict(points)
            rows.append([name, *(f'{1e3 * at[p]:.1f}' if p in at else '' for p in positions)])
        tables.append('\n'.join('| ' + ' | '.join(row) + ' |' for row in rows))
    return '\n\n'.join(tables)
