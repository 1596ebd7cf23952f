"""2:4 storage of Linear weights: what fits, that it is timed, and what happens where there is none; here on a CPU."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cp_basicsr.engine import semi_structured
from cp_basicsr.engine.level_layers import LevelLayers
from cp_basicsr.sparsity import NMPattern, convert


def sparse_weight(kept, out_width=32, in_width=64, dtype=torch.float16):
    weight = torch.zeros(out_width, in_width // 4, 4, dtype=dtype)
    weight[..., :kept] = 1
    return weight.flatten(1)


@pytest.mark.parametrize(
    ('weight', 'fitting'),
    [
        (sparse_weight(2), True),
        (sparse_weight(1, 64, 192, torch.bfloat16), True),
        (sparse_weight(3), False),
        (sparse_weight(2, dtype=torch.float32), False),
        (sparse_weight(2, out_width=60), False),
        (sparse_weight(2, in_width=180), False),
        (sparse_weight(2)[..., None, None], False),
        (torch.cat([sparse_weight(2)[:-1], sparse_weight(3)[:1]]), False),
    ],
)
def test_what_can_be_stored_two_of_four(weight, fitting):
    assert semi_structured.fits(weight) is fitting


def test_the_quicker_weight_is_taken(monkeypatch):
    weight, packed = sparse_weight(2, dtype=torch.bfloat16), sparse_weight(2, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.sparse, 'to_sparse_semi_structured', lambda _: packed)
    for times, winner in (([1.0, 2.0], packed), ([2.0, 1.0], weight), ([1.0, 1.0], weight)):
        order = iter(times)
        called = []
        chosen = semi_structured.quicker_weight(weight, lambda call: called.append(call()) or next(order))  # noqa: B023
        assert chosen is winner
        assert [tuple(output.shape) for output in called] == [(semi_structured.SAMPLE_TOKENS, 32)] * 2


def linear_of(weight):
    net = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    convert(net, NMPattern(4, [2, 4]))
    return net[0]


def test_a_semi_structured_layer_takes_what_comes_and_gives_its_own_type(monkeypatch):
    weight = sparse_weight(2, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.sparse, 'to_sparse_semi_structured', torch.clone)
    times = iter([1.0, 2.0])
    layers = LevelLayers('bf16', pytest.fail, lambda _: next(times))
    layer, bias = linear_of(weight), torch.ones(32, dtype=torch.bfloat16)
    made = layers._quicker(layer, weight, bias)
    tokens = torch.rand(64, 5).T
    with torch.autocast('cpu', torch.float16):
        output = made(tokens)
    assert torch.equal(output, F.linear(tokens.bfloat16(), weight, bias))
    assert layers.semi_structured == {'0'}


def test_without_semi_structured_kernels_masked_weights_are_used_and_the_log_says_so(monkeypatch):
    def refuse(_):
        raise RuntimeError('compute capability')

    monkeypatch.setattr(torch.sparse, 'to_sparse_semi_structured', refuse)
    told = []
    layers = LevelLayers('bf16', told.append, pytest.fail)
    weight = sparse_weight(2, dtype=torch.bfloat16)
    assert layers._quicker(linear_of(weight), weight, None).weight is weight
    assert told == [
        'Linear layers run with dense masked weights: 2:4 semi-structured ones cannot be had (compute capability).'
    ]
    assert layers.semi_structured == set()
