"""N of each layer: what is measured, and that the choice is the best of all at the same MACs."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cp_basicsr.sparsity import (
    NMPattern,
    PatternError,
    allocate,
    convert,
    layer_distances,
    prunable_layers,
    trace_macs,
)
from cp_basicsr.sparsity.allocation import _log_distances

pytestmark = pytest.mark.usefixtures('one_thread')
SHAPE = (1, 8, 6, 6)


class Small(nn.Module):
    """Three convolutions, of which the last hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, padding=1)
        self.faint = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.second(x) + 1e-3 * self.faint(x)


def supernet(pattern: NMPattern, **options: object) -> nn.Module:
    net = Small().eval()
    convert(net, pattern, **options)
    return net


def macs_of(net: nn.Module, level: int) -> int:
    return trace_macs(net, SHAPE).level(level)


def test_distances_are_those_of_the_network_with_one_layer_masked() -> None:
    net, x = supernet(NMPattern(8, [2, 4, 8])), torch.rand(2, *SHAPE[1:])
    found = layer_distances(net, [x])
    assert list(found) == ['first', 'second', 'faint']
    for name, layer in prunable_layers(net).items():
        for level, distance in enumerate(found[name]):
            plain = Small().eval()
            getattr(plain, name).weight.data *= layer.mask(level)
            with torch.no_grad():
                expected = (plain(x) - Small()(x)).double().square().mean()
            assert distance == pytest.approx(float(expected), rel=1e-4)


def test_a_layer_that_hardly_matters_gives_its_weights_to_the_others() -> None:
    pattern = NMPattern(8, [2, 4, 8])
    net, x = supernet(pattern), torch.rand(4, *SHAPE[1:])
    found = allocate(net, pattern, trace_macs(net, SHAPE), layer_distances(net, [x]))
    assert found['faint'] == [1, 2, 8]
    assert all(found[name][1] >= 4 for name in ('first', 'second'))
    own = supernet(pattern, layer_levels=found)
    for level in range(2):
        assert macs_of(own, level) <= macs_of(net, level)


def test_no_other_choice_of_the_same_macs_is_predicted_to_be_nearer() -> None:
    pattern = NMPattern(8, [3, 8])
    net = supernet(pattern)
    distances = {'first': [4.0], 'second': [1.0], 'faint': [0.001]}
    table = trace_macs(net, SHAPE)
    price = {name: layer.positions * layer.nonzeros[-1] / 8 for name, layer in table.layers.items()}
    curves = {name: _log_distances(pattern, own) for name, own in distances.items()}

    def predicted(chosen: dict[str, int]) -> float:
        return sum(float(torch.tensor(curves[name][n]).exp()) for name, n in chosen.items())

    found = {name: own[0] for name, own in allocate(net, pattern, table, distances).items()}
    room = 3 * sum(price.values())
    choices = (dict(zip(distances, each, strict=True)) for each in itertools.product(range(2, 8), repeat=3))
    best = min(predicted(each) for each in choices if sum(price[name] * n for name, n in each.items()) <= room)
    # Whole steps may leave a remainder of MACs that another choice would use up.
    step = max(price.values()) / sum(price.values())
    assert best <= predicted(found) <= (1 + 3 * step) * best


@settings(max_examples=50, deadline=None)
# A fall this steep is beyond a float where it is continued to N of 15.
@example(levels=[30, 31], distances=[[1e3, 0.0, 0.0, 0.0, 0.0]] * 3)
@given(
    levels=st.lists(st.integers(1, 31), min_size=1, max_size=5, unique=True),
    distances=st.lists(st.lists(st.floats(0, 1e3), min_size=5, max_size=5), min_size=3, max_size=3),
)
def test_levels_can_be_used_and_cost_no_more(levels: list[int], distances: list[list[float]]) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(32, 40, 3), nn.Conv2d(40, 33, 1), nn.Linear(33, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.three(self.two(self.one(x)).movedim(1, -1))

    pattern, shape = NMPattern(32, [*sorted(levels), 32]), (1, 32, 5, 5)
    net = Wide()
    convert(net, pattern)
    count = len(levels)
    found = allocate(
        net,
        pattern,
        trace_macs(net, shape),
        {name: own[:count] for name, own in zip(('one', 'two', 'three'), distances, strict=True)},
    )
    own = Wide()
    convert(own, pattern, layer_levels=found)
    assert all(trace_macs(own, shape).level(level) <= trace_macs(net, shape).level(level) for level in range(count + 1))


def test_own_levels_reach_masks_and_macs_and_the_first_that_matches_counts() -> None:
    net = supernet(NMPattern(8, [2, 4, 8]), layer_levels={'first': [1, 6, 8], 'f*': [3, 4, 8]})
    kept = {name: layer.mask(1).float().mean().item() for name, layer in prunable_layers(net).items()}
    assert kept == {'first': 6 / 8, 'second': 4 / 8, 'faint': 4 / 8}
    positions = 36
    assert macs_of(net, 0) == positions * 9 * (16 * 8 * 1 + 8 * 16 * 2 + 8 * 16 * 3) // 8


@pytest.mark.parametrize(
    ('layer_levels', 'message'),
    [
        ({'frist': [1, 2, 8]}, r"layer_levels pattern 'frist' matches no prunable layer; nearest: first"),
        ({'first': [1, 8]}, r'layer_levels\.first is \[1, 8\], 2 levels; the network has 3: \[2, 4, 8\]'),
        ({'first': [2, 1, 8]}, r'layer_levels\.first\.levels is \[2, 1, 8\]; levels go from sparse to dense'),
        ({'first': [1, 2, 4]}, r'layer_levels\.first\.levels is \[1, 2, 4\]; the last level is the base network'),
        ({'first': 3}, r'layer_levels\.first\.levels is 3; write a list of integers'),
        ([1, 2, 8], r'layer_levels is \[1, 2, 8\]; write a block'),
    ],
)
def test_own_levels_that_cannot_be_used_are_named(layer_levels: object, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        supernet(NMPattern(8, [2, 4, 8]), layer_levels=layer_levels)
