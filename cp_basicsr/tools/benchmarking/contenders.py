"""What is timed against each other: the plain dense network in the usual runtimes, and our network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from cp_basicsr.archs.restoring import choose_levels, restore_by_map
from cp_basicsr.precision import DEFAULT_PRECISION
from cp_basicsr.routing.choice import DEFAULT_TILE, RoutingChoice
from cp_basicsr.sparsity import LevelMapRoute, Route, UniformRoute, routed
from cp_basicsr.sparsity.placement import TileGrid

from .mixes import drawn_map
from .networks import Network
from .results import Result
from .rivals import RIVALS, RivalUnavailableError

SAME = 1e-3  # of the largest output: how far a float32 contender may be from PyTorch


@dataclass(frozen=True)
class Contender:
    """One thing to time on one input.

    Attributes:
        name: for the table.
        precision: 'fp32' or 'bf16'.
        ours: whether it is our network.
        macs: true MACs of one run.
        run: gives the output, float32 ``[1, C, H, W]``.
        expected: what PyTorch's eager float32 code gives; the output it is checked against.
    """

    name: str
    precision: str
    ours: bool
    macs: int
    run: Callable[[], Tensor]
    expected: Callable[[], Tensor]


def error_of(output: Tensor, expected: Tensor) -> float:
    """Largest absolute difference as a share of the largest expected magnitude; NaN or another shape give infinity."""
    if output.shape != expected.shape:
        return float('inf')
    error = float((output.float() - expected).abs().max() / expected.abs().max())
    return error if error == error else float('inf')


def rival_contenders(net: Any, x: Tensor, wanted: Sequence[str]) -> Iterator[Contender | RivalUnavailableError]:
    """The dense base network in each runtime of ``wanted``, or why it cannot run there.

    The plain dense network is what a user has without us. N:M zeros written into it would change nothing: none of these
    runtimes skips them.
    """
    plain, macs = net.bake(-1), net.macs(x.shape[1:]).dense
    expected = _once(lambda: plain(x))
    for rival in RIVALS:
        if rival.key in wanted:
            try:
                yield Contender(rival.name, rival.precision, False, macs, rival.prepare(plain, x), expected)
            except RivalUnavailableError as error:
                yield error


def checked(contenders: Iterable[Contender | RivalUnavailableError]) -> Iterator[tuple[Contender, float]]:
    """Those that run and, in float32, compute what PyTorch does, with their errors; the others are logged by name."""
    logger = get_root_logger()
    for contender in contenders:
        if isinstance(contender, RivalUnavailableError):
            logger.warning(f'Skipped {contender}')
            continue
        error = error_of(contender.run(), contender.expected())
        if contender.precision == DEFAULT_PRECISION and not error <= SAME:
            logger.warning(f'Skipped {contender.name}: it is off by {error:.1e} of the largest output.')
            continue
        yield contender, error


def our_contenders(network: Network, net: Any, x: Tensor, precision: str) -> Iterator[Contender]:
    """Our network at each level, dense first, and along a mix of levels for each of the network's budgets.

    Args:
        network, net: what is timed, and it built.
        x: the input.
        precision: what the layers compute in, 'fp32' or 'bf16'.
    """
    table = net.macs(x.shape[1:])
    for level in reversed(range(len(net.levels))):
        yield Contender(
            f'{_prefix(precision)} {net.labels[level]}',
            precision,
            True,
            table.level(level),
            partial(_run_level, network, net, x, level, precision),
            _once(partial(_reference, net, x, UniformRoute(level))),
        )
    for budget in network.budgets:
        yield _mix(network, net, x, budget, precision)


def result_of(
    network: Network, size: tuple[int, int], contender: Contender, dense: int, rounds: Sequence[float], error: float
) -> Result:
    """What was measured of a contender: dense MACs, seconds of each round, and its error."""
    return Result(
        network.title,
        size,
        contender.name,
        contender.precision,
        contender.ours,
        contender.macs,
        dense,
        tuple(rounds),
        error,
    )


def _prefix(precision: str) -> str:
    return 'ours,' if precision == DEFAULT_PRECISION else f'ours, {precision},'


def _run_level(network: Network, net: Any, x: Tensor, level: int, precision: str) -> Tensor:
    """A network is called as users call it; a single layer as the networks that it is part of do."""
    if network.has_classifier:
        return net.restore(x, RoutingChoice(level=level, precision=precision)).image
    return net.run_base(x, UniformRoute(level), precision)


def _mix(network: Network, net: Any, x: Tensor, budget: float, precision: str) -> Contender:
    """Levels drawn for a budget. With random weights a classifier chooses nothing sensible: it and the policy run and
    are counted, and then the drawn levels are taken."""
    levels = drawn_map(x.shape[-2:], DEFAULT_TILE, net.costs(x.shape[1:]), budget)
    macs = restore_by_map(net, x, levels, DEFAULT_TILE, precision=precision).macs
    choice = RoutingChoice(tile=DEFAULT_TILE)

    def run() -> Tensor:
        if network.has_classifier:
            choose_levels(net, x, choice)
        return restore_by_map(net, x, levels, DEFAULT_TILE, precision=precision).image

    if network.has_classifier:
        macs += net.classifier_macs(x.shape[1:], DEFAULT_TILE)
    route = LevelMapRoute(TileGrid(levels, DEFAULT_TILE, *x.shape[-2:]))
    expected = _once(partial(_reference, net, x, route))
    return Contender(f'{_prefix(precision)} mix at {budget:g}', precision, True, macs, run, expected)


def _reference(net: Any, x: Tensor, route: Route) -> Tensor:
    """The supernet along a route in PyTorch, without the engine."""
    with routed(route):
        return net.base(x.contiguous(memory_format=torch.channels_last)).contiguous()


def _once(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """``compute`` at the first call only."""
    kept: list[Tensor] = []

    def get() -> Tensor:
        if not kept:
            kept.append(compute())
        return kept[0]

    return get
