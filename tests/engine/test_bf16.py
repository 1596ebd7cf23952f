"""Compiled code in bf16: what its products round, where it is used, and what happens where it cannot be."""

import numpy as np
import pytest
import torch
from compiled import HAS_BF16, Layer, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import IMAGE_CASES
from torch import nn

from cp_basicsr.engine import host, winograd
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.sparsity import NMPattern, UniformRoute, convert, routed

needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason='this processor has no AVX512_BF16')


def rounded(values):
    return values.bfloat16().to(values.dtype)


def emulated(layer, x):
    """Winograd's convolution in double precision of operands that are rounded to bf16 after their transform."""
    (weight,), (bias,), side = layer.weights, layer.biases, winograd.SIDE
    inputs, kernel, outputs = (
        torch.from_numpy(matrix) for matrix in (winograd.INPUTS, winograd.KERNEL, winograd.OUTPUTS)
    )
    height, width = x.shape[2:]
    padded = nn.functional.pad(x.double(), (1, 1 + -width % 4, 1, 1 + -height % 4))
    tiles = padded.unfold(2, side, 4).unfold(3, side, 4)
    values = rounded(torch.einsum('nchwyx,ay,bx->nchwab', tiles, inputs, inputs))
    factors = rounded(torch.einsum('ocrs,ar,bs->ocab', weight.double(), kernel, kernel))
    products = torch.einsum('nchwab,ocab->nohwab', values, factors)
    result = torch.einsum('nohwab,ya,xb->nohywx', products, outputs, outputs)
    return result.reshape(1, len(weight), *padded[0, 0, 2:, 2:].shape)[:, :, :height, :width] + bias.view(-1, 1, 1)


@needs_bf16
@settings(max_examples=30, deadline=None)
@given(
    in_width=st.sampled_from([24, 63, 64, 129]), out_width=st.sampled_from([16, 40, 65]),
    height=st.integers(1, 40), width=st.integers(1, 150), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_layer_rounds_operands_and_nothing_else(in_width, out_width, height, width, seed):
    masks = [torch.ones(out_width, in_width, 3, 3, dtype=torch.bool)]
    layer = Layer('avx512_bf16', masks, 1, (1, 1), True, seed)
    assert layer.compiled.transformed == (True,)
    x = torch.randn(1, in_width, height, width, generator=torch.Generator().manual_seed(seed))
    output, largest = layer.run(x, 0).double(), layer.expected(x, 0).abs().max()
    # The code rounds transforms to float32 first: now and then that puts one on the other side of a half.
    difference = (output - emulated(layer, x)).abs()
    assert difference.mean() <= 1e-4 * largest and difference.max() <= 1e-2 * largest
    assert (output - layer.expected(x, 0)).abs().max() <= 4e-2 * largest


def test_pairs_of_channels_are_made_of_the_nearest_bf16():
    weight = np.random.default_rng(0).normal(size=(31, 5, 3, 3)).astype(np.float32)
    plain, _ = winograd.transformed(weight, 24)
    pairs, starts = winograd.transformed(weight, 24, paired=True)
    assert starts == (0, 36 * 3 * 24) and pairs.dtype == np.uint32
    expected = torch.from_numpy(plain[36 * 5 * 24 :].reshape(36, 5, 8)).bfloat16().float().numpy()
    bits = pairs[starts[1] :].reshape(36, 3, 8)
    lower, upper = (bits << 16).view(np.float32), (bits & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(lower, expected[:, ::2])
    np.testing.assert_array_equal(upper[:, :2], expected[:, 1::2])
    assert not upper[:, 2].any()


@needs_bf16
def test_levels_that_add_up_terms_stay_in_float32():
    masks = [random_mask((48, 64, 3, 3), 1, 16, torch.Generator().manual_seed(0)), torch.ones(48, 64, 3, 3) > 0]
    near, exact = (Layer(name, masks, 1, (1, 1), bias=True) for name in ('avx512_bf16', 'avx512'))
    assert near.compiled.transformed == (False, True)
    x = torch.randn(1, 64, 20, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(near.run(x, 0), exact.run(x, 0))
    assert not torch.equal(near.run(x, 1), exact.run(x, 1))


@needs_bf16
def test_a_network_keeps_the_code_of_both_precisions(monkeypatch, log):
    monkeypatch.delenv('CP_ENGINE', raising=False)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    convert(net, NMPattern(4, (2, 4)))
    engine = IMAGE_CASES['EDSR'].net().engine
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, made = {}, {}
        for precision in ('fp32', 'bf16', 'fp32', 'bf16'):
            output = engine.run(net, x, UniformRoute(1), precision)
            assert torch.equal(output, first.setdefault(precision, output))
            assert engine.prepared is made.setdefault(precision, engine.prepared)
    error = (first['bf16'] - first['fp32']).abs().max() / first['fp32'].abs().max()
    assert 1e-5 < error < 3e-2
    assert [line.split()[-2] for line in log] == ['avx512', 'avx512_bf16']


@pytest.mark.parametrize(
    ('features', 'asked', 'named'), [({'avx512f': True}, '', 'avx512'), ({'avx512f': True, 'avx512bf16': True,
    'avx2': True, 'fma': True}, 'avx2', 'avx2')]
)  # fmt: skip
def test_without_its_instructions_pytorch_computes(features, asked, named, monkeypatch, log):
    monkeypatch.setattr('llvmlite.binding.get_host_cpu_features', lambda: features)
    monkeypatch.setenv('CP_ENGINE', asked)
    host.processor_sets.cache_clear()
    try:
        net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input()
        with torch.no_grad():
            near = net.restore(x, RoutingChoice(level=-1, precision='bf16')).image
            with torch.autocast('cpu', torch.bfloat16), routed(UniformRoute(-1)):
                assert torch.equal(near, net.base(x).float())
    finally:
        host.processor_sets.cache_clear()
    assert f'bf16 is asked for, {named} code of this processor computes in fp32' in log[0]
