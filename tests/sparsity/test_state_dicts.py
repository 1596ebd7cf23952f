import copy

import pytest
import torch
from references import assert_pattern_holds
from torch import nn

from cp_basicsr.sparsity import (
    NMPattern,
    UniformRoute,
    bake_state_dict,
    convert,
    native_state_dict,
    prunable_layers,
    routed,
    weight_ranks,
)

PATTERN = NMPattern(4, [1, 2, 4])
WEIGHTS = ['shared', 'per_level']


class Recurrent(nn.Module):
    """One layer at two places, and a normalisation with buffers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.again = self.first
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 2, bias=False)

    def forward(self, x):
        return self.last(self.again(self.norm(self.first(x))).mean(dim=(2, 3)))


def supernet(weights='shared', seed=0):
    torch.manual_seed(seed)
    net = Recurrent().eval()
    convert(net, PATTERN, weights=weights)
    return net


def disturb(net):
    """As training would: values move, ranks stay."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize('weights', WEIGHTS)
def test_native_names_are_those_of_the_plain_network(weights):
    assert native_state_dict(supernet(weights)).keys() == Recurrent().state_dict().keys()


@pytest.mark.parametrize('weights', WEIGHTS)
def test_a_plain_state_dict_loads_strictly_and_is_ranked_anew(weights):
    net = supernet(weights)
    torch.manual_seed(1)
    plain = Recurrent().eval()
    net.load_state_dict(plain.state_dict(), strict=True)
    for name, layer in prunable_layers(net).items():
        weight = plain.get_submodule(name).weight
        assert torch.equal(layer.ranks, weight_ranks(weight, 4))
        for own in layer.level_weights or ():
            assert torch.equal(own, weight)
        for own in layer.level_biases or ():
            assert torch.equal(own, plain.get_submodule(name).bias)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(net(x), plain(x))


def test_a_plain_state_dict_with_a_missing_weight_is_refused():
    state = Recurrent().state_dict()
    del state['last.weight']
    with pytest.raises(RuntimeError, match=r'last\.weight'):
        supernet().load_state_dict(state, strict=True)


def test_a_supernet_state_dict_with_some_ranks_missing_is_refused():
    state = supernet('per_level').state_dict()
    del state['last.ranks']
    with pytest.raises(RuntimeError, match=r'last\.ranks'):
        supernet('per_level').load_state_dict(state, strict=True)


@pytest.mark.parametrize('weights', WEIGHTS)
def test_a_supernet_state_dict_keeps_ranks_that_its_weights_would_not_give(weights):
    net, other = supernet(weights), supernet(weights, seed=1)
    disturb(net)
    other.load_state_dict(copy.deepcopy(net.state_dict()), strict=True)
    own = dict(net.state_dict())
    assert all(torch.equal(value, own[key]) for key, value in other.state_dict().items())
    layer = prunable_layers(other)['first']
    assert not torch.equal(layer.ranks, weight_ranks(layer.weight, 4)), 'the test would show nothing'
    x = torch.randn(2, 6, 5, 5)
    for level in range(3):
        with routed(UniformRoute(level)):
            assert torch.equal(net(x), other(x))


def test_a_state_dict_that_holds_nothing_of_a_layer_leaves_its_ranks_and_values_alone():
    net = supernet('per_level')
    disturb(net)
    before = copy.deepcopy(net.state_dict())
    net.load_state_dict({'norm.weight': torch.full((6,), 2.0)}, strict=False)
    after = net.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == ['norm.weight']


@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('level', [0, 1, 2, -1])
def test_a_baked_network_is_plain_holds_the_pattern_and_computes_the_same(weights, level):
    net = supernet(weights)
    disturb(net)
    baked = bake_state_dict(net, level)
    plain = Recurrent().eval()
    plain.load_state_dict(baked, strict=True)
    assert_pattern_holds(plain.first.weight, PATTERN.levels[level], 4)
    assert_pattern_holds(plain.last.weight, PATTERN.levels[level], 4)
    x = torch.randn(2, 6, 5, 5)
    with routed(UniformRoute(level)):
        torch.testing.assert_close(plain(x), net(x), rtol=0, atol=0)


def test_baking_copies():
    net = supernet()
    before = net.last.weight.detach().clone()
    for level in range(3):
        for value in bake_state_dict(net, level).values():
            value.zero_()
    assert torch.equal(net.last.weight, before)


def test_copies_of_a_supernet_are_independent():
    net = supernet()
    twin = copy.deepcopy(net)
    disturb(twin)
    twin.load_state_dict(Recurrent().state_dict())
    assert torch.equal(net.first.ranks, weight_ranks(net.first.weight, 4))
    assert not torch.equal(net.first.ranks, twin.first.ranks)
