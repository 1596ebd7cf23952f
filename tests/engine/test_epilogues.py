"""What a compiled layer does while it stores its outputs: activation, PixelShuffle, scaling and residual."""

import pytest
import torch
import torch.nn.functional as F
from compiled import Layer, each_set, finished, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from references import assert_near

from cp_basicsr.engine.compiled_layer import Epilogue
from cp_basicsr.engine.instructions import instruction_set
from cp_basicsr.engine.job import Activation
from cp_basicsr.engine.memory import empty_map
from cp_basicsr.engine.storing import SHUFFLES


def slopes_of(activation, count, generator):
    return torch.randn(count, generator=generator) if activation is Activation.SLOPE else None


def as_residual(values, layout):
    """The values in memory that ends where they end, in a map of the engine's own, or with other strides."""
    if layout == 'room':
        return empty_map(*values.shape).copy_(values)
    if layout == 'channels_last':
        return values.contiguous(memory_format=torch.channels_last)
    if layout == 'one channel':
        return values[:, :1].expand_as(values)
    if layout == 'inside':
        around = torch.full([n + 1 for n in values.shape], torch.nan)
        return around[1:, 1:, 1:, 1:].copy_(values)
    return values


@each_set
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_epilogue(isa, data):
    block = instruction_set(isa).outputs
    shuffle = data.draw(st.sampled_from([factor for factor in SHUFFLES if block % factor == 0]), label='shuffle')
    activation = data.draw(st.sampled_from(list(Activation)), label='activation')
    seed = data.draw(st.integers(0, 10**6), label='seed')
    out_width = shuffle**2 * data.draw(st.integers(1, 60 // shuffle**2), label='channels')
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 70)), label='size')
    layout = data.draw(
        st.sampled_from([None, 'packed', 'room', 'channels_last', 'one channel', 'inside']), label='residual'
    )
    generator = torch.Generator().manual_seed(seed)
    masks = [random_mask((out_width, 7, 3, 3), n, 4, generator) for n in (1, 3)]
    layer = Layer(isa, masks, 1, (1, 1), bias=data.draw(st.booleans(), label='bias'), seed=seed)
    x = torch.randn(2, 7, *size, generator=generator)
    levels = torch.randint(2, (2, *size), generator=generator)
    residual = None
    if layout:
        shape = (2, out_width // shuffle**2, size[0] * shuffle, size[1] * shuffle)
        residual = as_residual(torch.randn(shape, generator=generator), layout)
    scale = 1.0 if residual is None else data.draw(st.sampled_from([1.0, 0.1, -2.5]), label='scale')
    epilogue = Epilogue(activation, slopes_of(activation, out_width, generator), shuffle, residual, scale)
    output, sums = layer.run(x, levels, epilogue), layer.expected(x, levels)
    assert_near(output, finished(sums, epilogue), sums.abs())


@each_set
@pytest.mark.parametrize('activation', Activation)
def test_activations_of_nan_and_infinity(isa, activation):
    layer = Layer(isa, [torch.ones(9, 3, 1, 1, dtype=torch.bool)], 1, (0, 0), bias=True)
    x = torch.randn(1, 3, 5, 20, generator=torch.Generator().manual_seed(0))
    # PyTorch's own GELU of infinity is NaN, or not, as the number of values goes.
    infinity = 1e30 if activation is Activation.GELU else torch.inf
    for column, value in enumerate((torch.nan, infinity, -infinity)):
        x[0, column, 2, 7 * column] = value
    slopes = torch.linspace(-0.5, 0.5, 9) if activation is Activation.SLOPE else None
    epilogue = Epilogue(activation, slopes)
    expected = finished(layer.expected(x, 0).float(), epilogue)
    torch.testing.assert_close(layer.run(x, 0, epilogue), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@each_set
def test_gelu_is_the_exact_one(isa):
    """With the error function; near 0 as exact as far from it."""
    layer = Layer(isa, [torch.ones(1, 1, 1, 1, dtype=torch.bool)], 1, (0, 0), bias=False)
    for largest in (1e-3, 1.0, 30.0):
        sums = torch.linspace(-largest, largest, 4001).view(1, 1, 1, -1)
        output = layer.run(sums / layer.weights[0], 0, Epilogue(Activation.GELU))
        torch.testing.assert_close(output.double(), F.gelu(sums.double()), rtol=0, atol=3e-7 * largest)


@each_set
def test_a_residual_is_left_alone(isa):
    layer = Layer(isa, [torch.ones(8, 8, 3, 3, dtype=torch.bool)], 1, (1, 1), bias=False)
    x = empty_map(1, 8, 6, 21).copy_(torch.randn(1, 8, 6, 21))
    before = x.clone()
    output = layer.run(x, 0, Epilogue(residual=x))
    assert torch.equal(x, before)
    assert_near(output, layer.expected(before, 0) + before)


@each_set
@pytest.mark.parametrize('edge', [16, 20])
@pytest.mark.parametrize('shuffle', [1, 2])
def test_a_picture_has_every_pixel_wherever_levels_meet(isa, edge, shuffle):
    masks = [random_mask((3 * shuffle**2, 8, 3, 3), n, 8, torch.Generator().manual_seed(n)) for n in (2, 8)]
    layer = Layer(isa, masks, 1, (1, 1), bias=True)
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 8, 9, 48, generator=generator), torch.randn(2, 3, 9 * shuffle, 48 * shuffle)
    levels = (torch.arange(48) < edge).long().expand(2, 9, 48)
    epilogue = Epilogue(shuffle=shuffle, residual=residual.double())
    output = layer.run(x, levels, Epilogue(shuffle=shuffle, residual=residual))
    assert output.is_contiguous() == (edge == 16)
    assert_near(output, finished(layer.expected(x, levels), epilogue))
