"""N of each layer: levels that spend the MACs of one N for all layers where they are worth most.

What a layer's pruning costs is measured, one layer at a time, as the distance of the network's output to the dense
one's; in between, and a little beyond, its logarithm is taken for linear in N. A level then raises N, one by one, where
that gains most for each MAC. Layer-wise N:M ratios under a budget of MACs, chosen by another criterion: DominoSearch
(NeurIPS 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .convert import prunable_layers
from .layers import PrunableLayer
from .macs import MacTable
from .pattern import NMPattern
from .route import UniformRoute, routed

# A layer keeps at least this share of a level's N: below, nothing has been measured.
LEAST_SHARE = 0.5
# A layer without any effect has this distance, so that there is a logarithm.
LEAST_DISTANCE = 1e-20


class _OneLayerRoute(UniformRoute):
    """One layer at a level, all others at their densest."""

    def __init__(self, name: str, level: int) -> None:
        super().__init__(-1)
        self._name, self._level = name, level

    def run(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        return layer.run_level(x, self._level) if layer.layer_name == self._name else super().run(layer, x)


@torch.no_grad()
def layer_distances(net: nn.Module, inputs: Sequence[Tensor]) -> dict[str, list[float]]:
    """What each layer's pruning alone costs.

    Args:
        net: supernet in eval mode, its levels trained or started.
        inputs: batches of inputs.

    Returns:
        By name of the layer, for each of its sparse levels, the mean squared distance of the network's output with this
        layer at the level to the dense output.
    """
    dense = [net(batch) for batch in inputs]
    count = sum(output.numel() for output in dense)

    def distance(route: UniformRoute) -> float:
        with routed(route):
            outputs = [net(batch) for batch in inputs]
        return (
            sum(float((mine - its).double().square().sum()) for mine, its in zip(outputs, dense, strict=True)) / count
        )

    return {
        name: [distance(_OneLayerRoute(name, level)) for level in range(layer.pattern.densest)]
        for name, layer in prunable_layers(net).items()
    }


def allocate(
    net: nn.Module, pattern: NMPattern, table: MacTable, distances: Mapping[str, Sequence[float]]
) -> dict[str, list[int]]:
    """N of each level of each layer, at no more MACs than ``pattern`` spends on all layers alike.

    Args:
        net: supernet of this pattern.
        pattern: whose levels the distances were measured at.
        table: MACs of one input of the network.
        distances: from :func:`layer_distances`.

    Returns:
        By name of the layer; strictly increasing and ending with M, as :class:`NMPattern` has it.
    """
    layers = prunable_layers(net)
    curves = {name: _log_distances(pattern, distances[name]) for name in layers}
    macs = {
        name: [table.layers[name].positions * layer.nonzeros_with(n) for n in range(pattern.m + 1)]
        for name, layer in layers.items()
    }
    found = {name: [pattern.m] for name in layers}
    for level in reversed(range(pattern.densest)):
        n = pattern.levels[level]
        start = {name: min(max(level + 1, math.ceil(LEAST_SHARE * n)), own[0] - 1) for name, own in found.items()}
        most = {name: own[0] - 1 for name, own in found.items()}
        room = sum(of_layer[n] for of_layer in macs.values())
        for name, chosen in _raised(macs, curves, start, most, room).items():
            found[name].insert(0, chosen)
    return found


def _raised(
    macs: Mapping[str, Sequence[int]],
    curves: Mapping[str, Sequence[float]],
    start: Mapping[str, int],
    most: Mapping[str, int],
    room: int,
) -> dict[str, int]:
    """N of each layer, raised from ``start`` while MACs are left; ``macs`` and ``curves`` are by N from 0 to M."""
    chosen = dict(start)
    room -= sum(macs[name][n] for name, n in chosen.items())
    growing = set(macs)
    while growing:
        gains = {}
        for name in sorted(growing):
            n = chosen[name]
            price = macs[name][n + 1] - macs[name][n]
            if n < most[name] and price <= room:
                gains[name] = (_log_fall(curves[name], n) - math.log(max(price, 1)), price)
        growing = set(gains)
        if gains:
            name = max(gains, key=lambda each: gains[each][0])
            chosen[name] += 1
            room -= gains[name][1]
    return chosen


def _log_fall(curve: Sequence[float], n: int) -> float:
    """Logarithm of what the distance falls by from N to N + 1; far below the measured N it is beyond a float itself."""
    here, there = curve[n], curve[n + 1]
    return here + math.log(-math.expm1(there - here)) if there < here else -math.inf


def _log_distances(pattern: NMPattern, distances: Sequence[float]) -> list[float]:
    """Logarithm of the distance for each N from 0 to M: linear between the measured ones and beyond them."""
    known = list(zip(pattern.levels, (math.log(max(each, LEAST_DISTANCE)) for each in distances), strict=False))
    for index in reversed(range(len(known) - 1)):  # a sparser level that happened to be nearer is luck
        known[index] = (known[index][0], max(known[index][1], known[index + 1][1]))
    if len(known) == 1:  # as if the distance fell by half from there to one weight short of dense
        known.append((pattern.m, known[0][1] - math.log(2)))
    values = []
    for n in range(pattern.m + 1):
        right = next((index for index, (at, _) in enumerate(known) if at >= n), len(known) - 1)
        (low, below), (high, above) = known[max(right - 1, 0)], known[max(right, 1)]
        values.append(below + (above - below) * (n - low) / (high - low))
    return values
