"""Winograd's convolution: its matrices, when it is taken, and how exact and how careful a layer is with it."""

import numpy as np
import pytest
import torch
from compiled import Layer, each_set, each_set_and_bf16, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_basicsr.engine import winograd

DENSE = {n: torch.ones(n, n, 3, 3, dtype=torch.bool) for n in (24, 64)}


@given(st.lists(st.integers(-9, 9), min_size=6, max_size=6), st.lists(st.integers(-9, 9), min_size=3, max_size=3))
def test_products_of_transformed_numbers_are_a_sliding_sum(inputs, taps):
    products = (winograd.KERNEL @ taps) * (winograd.INPUTS @ inputs)
    np.testing.assert_allclose(winograd.OUTPUTS @ products, np.correlate(inputs, taps), atol=1e-9)


def test_weights_are_transformed_for_each_block_and_filled_up_with_zeros():
    weight = np.random.default_rng(0).normal(size=(31, 5, 3, 3)).astype(np.float32)
    values, starts = winograd.transformed(weight, 24)
    assert starts == (0, 36 * 5 * 24) and values.dtype == np.float32
    first, second = values[: starts[1]].reshape(6, 6, 5, 24), values[starts[1] :].reshape(6, 6, 5, 8)
    assert not second[..., 7:].any()
    expected = np.einsum('ar,rs,bs->ab', winograd.KERNEL, weight[27, 4], winograd.KERNEL)
    np.testing.assert_allclose(second[..., 4, 3], expected, rtol=1e-6)
    np.testing.assert_allclose(first[0, 5, :, 2], winograd.KERNEL[0] @ weight[2].swapaxes(0, 1)[..., 2], rtol=1e-5)


def test_where_transforms_are_dear_a_quarter_of_the_weights_is_too_few():
    """By hand, 64 channels at 2:8: 9216 + 2 * 42 * 64 for Winograd, 9216 + 1.7 * 3 * 576 + 8 * 64 for the pattern."""
    mask = random_mask((64, 64, 3, 3), 2, 8, torch.Generator().manual_seed(0)).numpy()
    half = random_mask((64, 64, 3, 3), 4, 8, torch.Generator().manual_seed(0)).numpy()
    assert winograd.is_faster(mask, 24, processor='znver5') and not winograd.is_faster(mask, 24, processor='znver4')
    assert winograd.is_faster(half, 24, processor='znver4')


@each_set
@pytest.mark.parametrize(('n', 'chosen'), [(1, False), (4, True), (8, True)])
def test_levels_that_keep_enough_weights_are_transformed(isa, n, chosen):
    masks = [random_mask((64, 64, 3, 3), n, 8, torch.Generator().manual_seed(0)), DENSE[64]]
    assert Layer(isa, masks, 1, (1, 1), bias=True).compiled.transformed == (chosen, True)


@each_set
@pytest.mark.parametrize(('kernel', 'stride'), [((3, 3), 2), ((5, 5), 1), ((1, 1), 1), ((1, 3), 1)])
def test_other_layers_are_not(isa, kernel, stride):
    layer = Layer(isa, [torch.ones(48, 16, *kernel, dtype=torch.bool)], stride, (0, 0), bias=False)
    assert layer.compiled.transformed == (False,)


@each_set
@settings(max_examples=30, deadline=None)
@given(
    in_width=st.sampled_from([24, 64, 130, 256]), out_width=st.sampled_from([24, 40, 65]),
    height=st.integers(1, 40), width=st.integers(1, 150), shift=st.sampled_from([0.0, 0.5, 20.0]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_rounding_stays_below_a_hundred_thousandth_of_the_largest_output(
    isa, in_width, out_width, height, width, shift, seed
):
    layer = Layer(isa, [torch.ones(out_width, in_width, 3, 3, dtype=torch.bool)], 1, (1, 1), True, seed)
    assert layer.compiled.transformed == (True,)
    x = torch.randn(1, in_width, height, width, generator=torch.Generator().manual_seed(seed)) + shift
    error = (layer.run(x, 0).double() - layer.expected(x, 0)).abs().max()
    assert error <= 1e-5 * layer.expected(x, 0).abs().max()


@each_set_and_bf16
@pytest.mark.parametrize('special', [torch.nan, torch.inf, 3e38, 1e-42])
@pytest.mark.parametrize('in_width', [24, 25])
def test_numbers_that_it_would_spread_or_lose_reach_their_neighbours_only(isa, in_width, special):
    layer = Layer(isa, [torch.ones(24, in_width, 3, 3, dtype=torch.bool)], 1, (1, 1), bias=False)
    assert layer.compiled.transformed == (True,)
    x = torch.zeros(1, in_width, 20, 40)
    x[0, in_width - 1, 9, 17] = special
    output = layer.run(x, 0)
    reached = torch.zeros(20, 40, dtype=torch.bool)
    reached[8:11, 16:19] = True
    assert not output[:, :, ~reached].any()
    assert (output[:, :, reached] != 0).all()


@each_set
def test_outputs_do_not_depend_on_what_lies_beyond_the_last_rows(isa):
    layer = Layer(isa, [DENSE[24]], 1, (0, 0), bias=False)
    x = torch.randn(1, 24, 7, 40, generator=torch.Generator().manual_seed(0))
    huge = torch.cat([x, torch.full((1, 24, 9, 40), 1e20)], dim=2)
    expected = layer.run(x, 0)
    layer.run(huge, 0)
    assert torch.equal(layer.run(huge[:, :, :7], 0), expected)
