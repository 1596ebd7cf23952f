"""What routing costs beside the layers: classifier, policy, and running tiles at different levels."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from cp_basicsr.archs.restoring import choose_levels
from cp_basicsr.routing.choice import DEFAULT_TILE, RoutingChoice
from cp_basicsr.sparsity import LevelMapRoute, UniformRoute
from cp_basicsr.sparsity.placement import TileGrid

from .mixes import drawn_map
from .networks import Network
from .timing import Timer

BUDGET = 0.5


@dataclass(frozen=True)
class Overhead:
    """Median seconds on one input.

    Attributes:
        size: height and width of the input, pixels.
        dense: the densest level, uniform.
        classifier: the prediction.
        choice: classifier and policy together, at a budget.
        dense_by_map: the densest level everywhere, along a level map: what the map itself costs.
        mix: a mix of all levels along a drawn map.
        parts: what the mix would take if each tile took its share of the time of a uniform run at its level.
    """

    size: tuple[int, int]
    dense: float
    classifier: float
    choice: float
    dense_by_map: float
    mix: float
    parts: float

    @property
    def map_share(self) -> float:
        """Cost of the level map, every tile dense, as a share of the dense time; noise may make it negative."""
        return self.dense_by_map / self.dense - 1

    @property
    def routing_share(self) -> float:
        """Classifier, policy and the mix's cost beyond its parts, as a share of the dense time."""
        return (self.choice + self.mix - self.parts) / self.dense

    def as_markdown(self) -> str:
        """The table."""
        rows = [
            ('dense, uniform', self.dense, ''),
            ('classifier', self.classifier, _percent(self.classifier / self.dense)),
            ('classifier and policy', self.choice, _percent(self.choice / self.dense)),
            ('dense, along a level map', self.dense_by_map, _percent(self.map_share)),
            (f'mix at {BUDGET:g}', self.mix, ''),
            ('its tiles in uniform runs', self.parts, _percent((self.mix - self.parts) / self.dense)),
            ('routing in all', self.choice + self.mix - self.parts, _percent(self.routing_share)),
        ]
        lines = ['| | ms | overhead, % of dense |', '| --- | ---: | ---: |']
        return '\n'.join([*lines, *(f'| {name} | {1e3 * seconds:.2f} | {share} |' for name, seconds, share in rows)])


def _percent(share: float) -> str:
    return f'{100 * share:.2f}'


def overhead(network: Network, size: tuple[int, int], timer: Timer) -> Overhead:
    """Measure on one input of ``size``: height and width in pixels, rounded up to what the network takes."""
    net = network.build()
    x = network.sample(size, net.multiple)
    size = tuple(x.shape[-2:])
    costs = net.costs(x.shape[1:])
    levels = drawn_map(size, DEFAULT_TILE, costs, BUDGET)
    grids = [TileGrid(each, DEFAULT_TILE, *size) for each in (levels, levels.clone().fill_(net.pattern.densest))]
    choice = RoutingChoice(budget=BUDGET, tile=DEFAULT_TILE)
    uniform = [f'level {level}' for level in range(len(costs))]
    runs = {
        'classifier': lambda: net.predict(x, DEFAULT_TILE),
        'choice': lambda: choose_levels(net, x, choice),
        'mix': lambda: net.run_base(x, LevelMapRoute(grids[0])),
        'dense by map': lambda: net.run_base(x, LevelMapRoute(grids[1])),
    }
    for level, name in enumerate(uniform):
        runs[name] = lambda level=level: net.run_base(x, UniformRoute(level))
    seconds = {name: median(rounds) for name, rounds in timer.interleaved(runs).items()}
    held = grids[0].at(*size).flatten()
    shares = held.bincount(minlength=len(costs)).double() / len(held)
    return Overhead(
        size=size,
        dense=seconds[uniform[-1]],
        classifier=seconds['classifier'],
        choice=seconds['choice'],
        dense_by_map=seconds['dense by map'],
        mix=seconds['mix'],
        parts=sum(float(share) * seconds[name] for share, name in zip(shares, uniform, strict=True)),
    )
