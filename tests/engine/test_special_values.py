"""Denormals, NaN and infinity: what the terms that a layer keeps make of them."""

import pytest
import torch
import torch.nn.functional as F
from compiled import Layer, each_set, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st

SMALLEST = 2.0**-149  # the smallest denormal float32


def by_terms(x, weight, bias, stride, padding):
    """A convolution as a sum over kept weights only: float64 ``[B, out, h, w]``."""
    images, _, height, width = x.shape
    kernel = weight.shape[2:]
    patches = F.unfold(x.double(), kernel, padding=padding, stride=stride)
    kept = weight.double().flatten(1)[None, :, :, None]
    terms = torch.where(kept != 0, kept * patches[:, None], 0).sum(dim=2)
    sizes = [(n + 2 * p - k) // stride + 1 for n, p, k in zip((height, width), padding, kernel, strict=True)]
    return terms.view(images, len(weight), *sizes) + bias.view(-1, 1, 1)


@each_set
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4), kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]), width=st.integers(5, 40),
    share=st.sampled_from([0.003, 0.1]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_non_finite_inputs_spoil_the_outputs_that_keep_them_and_no_others(isa, n, kernel, stride, width, share, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask((30, 9, kernel, kernel), n, 4, generator)
    layer = Layer(isa, [mask], stride, (kernel // 2,) * 2, bias=True, seed=seed)
    x = torch.randn(2, 9, 7, width, generator=generator)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.randint(3, x.shape, generator=generator)]
    x = torch.where(torch.rand(x.shape, generator=generator) < share, special, x)
    output = layer.run(x, 0)
    expected = by_terms(x, layer.weights[0], layer.biases[0], stride, layer.padding).float()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    # A dense convolution with the zeros written in multiplies them by infinity as well.
    written_in = layer.expected(x, 0).isfinite()
    assert output.isfinite()[written_in].all()
    if n == 4:
        assert torch.equal(output.isfinite(), written_in)


@each_set
@pytest.mark.parametrize('size', [1e-41, 1e-39, 1e-37])
def test_denormals_are_not_flushed_to_zero(isa, size):
    mask = random_mask((30, 16, 3, 3), 2, 4, torch.Generator().manual_seed(0))
    layer = Layer(isa, [mask], 1, (1, 1), bias=False)
    x = size * torch.randn(1, 16, 9, 33, generator=torch.Generator().manual_seed(1))
    output, expected = layer.run(x, 0).double(), layer.expected(x, 0)
    terms = 8 * 9  # each may be rounded to the grid of denormals
    assert expected.abs().max() > 1000 * terms * SMALLEST, 'the test would show nothing'
    assert (output - expected).abs().max() <= terms * SMALLEST + 1e-5 * expected.abs().max()
    assert (output != 0).double().mean() > 0.9
