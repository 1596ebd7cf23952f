"""One compiled layer against F.conv2d and F.linear of the masked weights in double precision."""

import pytest
import torch
import torch.nn.functional as F
from compiled import Layer, each_set, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from references import assert_near

from cp_basicsr.engine.geometry import Scratch
from cp_basicsr.engine.inputs import Inputs
from cp_basicsr.engine.schedule import uniform_schedule

KERNELS = [(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (5, 1)]
LAYOUTS = ['contiguous', 'channels_last', 'transposed', 'inside', 'every other column', 'every other row', 'one image']


@st.composite
def cases(draw):
    """Arguments of a layer, an input, and the side of tiles of different levels."""
    m = draw(st.integers(1, 9), label='m')
    levels = sorted(draw(st.sets(st.integers(1, m), min_size=1, max_size=3), label='levels'))
    kernel = draw(st.sampled_from(KERNELS), label='kernel')
    padding = tuple(draw(st.integers(0, side // 2), label='padding') for side in kernel)
    seed = draw(st.integers(0, 10**6), label='seed')
    in_width, out_width = draw(st.integers(1, 40), label='in'), draw(st.integers(1, 60), label='out')
    generator = torch.Generator().manual_seed(seed)
    options = {
        'masks': [random_mask((out_width, in_width, *kernel), n, m, generator) for n in levels],
        'stride': draw(st.sampled_from([1, 2]), label='stride'),
        'padding': padding,
        'bias': draw(st.booleans(), label='bias'),
        'seed': seed,
    }
    smallest = [max(side - 2 * pad, 1) for side, pad in zip(kernel, padding, strict=True)]
    height, width = (draw(st.integers(n, n + more)) for n, more in zip(smallest, (24, 150), strict=True))
    x = torch.randn(draw(st.integers(1, 3), label='images'), in_width, height, width, generator=generator)
    return options, draw(layouts(x)), draw(st.integers(0, 40), label='tile')


@st.composite
def layouts(draw, x):
    """The same values with other strides, or as parts that stand for their concatenation, perhaps at half the size."""
    kind = draw(st.sampled_from([*LAYOUTS, 'parts']), label='layout')
    doubled = draw(st.booleans(), label='doubled')
    if kind != 'parts':
        return Inputs((laid_out(x, kind),), doubled)
    cuts = sorted(draw(st.sets(st.integers(1, max(x.shape[1] - 1, 1)), max_size=3), label='cuts'))
    parts = x.tensor_split(cuts, dim=1)
    laid = [laid_out(part, draw(st.sampled_from(LAYOUTS))) for part in parts if part.shape[1]]
    return Inputs(tuple(laid), doubled)


def laid_out(x, kind):
    if kind == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    if kind == 'transposed':
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if kind == 'contiguous':
        return x
    if kind == 'one image':
        return x[:1].expand_as(x)
    images, channels, height, width = x.shape
    around = torch.full((images + 1, channels + 2, 2 * height + 3, 2 * width + 3), torch.nan)
    step = {'inside': (1, 1), 'every other row': (2, 1), 'every other column': (1, 2)}[kind]
    place = around[1:, 1:-1, 1 : 1 + height * step[0] : step[0], 2 : 2 + width * step[1] : step[1]]
    return place.copy_(x)


def level_map(shape, tile, levels, seed):
    """Levels of outputs in tiles of any size, 1 pixel among them; one for all with tile 0."""
    if tile == 0:
        return seed % levels
    images, height, width = shape
    tiles = torch.randint(
        levels, (images, -(-height // tile), -(-width // tile)), generator=torch.Generator().manual_seed(seed)
    )
    return tiles.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, :height, :width].contiguous()


@each_set
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_any_layer_on_any_input_at_any_levels(isa, case):
    options, x, tile = case
    layer = Layer(isa, **options)
    shape = (x.shape[0], *layer.compiled.out_size(*x.shape[2:]))
    layer.check(x, level_map(shape, tile, len(options['masks']), options['seed']))


@each_set
@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (1, 31), (33, 1), (17, 63), (8, 128), (9, 129), (64, 64)])
def test_usual_layers_on_sizes_at_and_beside_those_of_strips(isa, kernel, stride, size):
    masks = [random_mask((64, 64, kernel, kernel), n, 4, torch.Generator().manual_seed(n)) for n in (1, 2, 4)]
    if kernel > 3:
        masks = [mask[:26, :10] for mask in masks]
    layer = Layer(isa, masks, stride, (kernel // 2,) * 2, bias=True)
    x = torch.randn(2, masks[0].shape[1], *size, generator=torch.Generator().manual_seed(1))
    shape = (2, *layer.compiled.out_size(*size))
    layer.check(x, 0)
    layer.check(x, level_map(shape, 16, 3, 0))


@each_set
def test_a_linear_layer_is_a_convolution_of_one_tap(isa):
    mask = random_mask((50, 37, 1, 1), 2, 4, torch.Generator().manual_seed(0))
    layer = Layer(isa, [mask], 1, (0, 0), bias=True)
    tokens = torch.randn(9 * 21, 37, generator=torch.Generator().manual_seed(1))
    output = layer.run(tokens.T.reshape(1, 37, 9, 21), 0)
    expected = F.linear(tokens.double(), layer.weights[0][..., 0, 0].double(), layer.biases[0].double())
    assert_near(output.reshape(50, -1).T, expected)


@each_set
@pytest.mark.parametrize('kept', ['none', 'a few', 'some outputs', 'one input', 'all'])
def test_masks_need_not_be_regular(isa, kept):
    mask = torch.zeros(53, 19, 3, 3, dtype=torch.bool)
    if kept == 'a few':
        mask.view(-1)[torch.tensor([0, 77, 4000])] = True
    elif kept == 'some outputs':
        mask[[0, 23, 24, 52]] = True
    elif kept == 'one input':
        mask[:, 18] = True
    elif kept == 'all':
        mask[:] = True
    layer = Layer(isa, [mask], 1, (1, 1), bias=True)
    layer.check(torch.randn(2, 19, 11, 21, generator=torch.Generator().manual_seed(0)), 0)


@each_set
def test_no_image_gives_no_image(isa):
    layer = Layer(isa, [torch.ones(4, 4, 3, 3, dtype=torch.bool)], 1, (1, 1), bias=True)
    assert layer.run(torch.zeros(0, 4, 8, 8), 0).shape == (0, 4, 8, 8)


@each_set
def test_inputs_are_left_alone_and_outputs_are_not_handed_out_twice(isa):
    layer = Layer(isa, [torch.ones(8, 8, 3, 3, dtype=torch.bool)], 1, (1, 1), bias=False)
    x = torch.randn(1, 8, 9, 40, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    first = layer.run(x, 0)
    kept = first.clone()
    second = layer.run(first, 0)
    for _ in range(3):
        layer.run(second, 0)
    assert torch.equal(x, before) and torch.equal(first, kept)
    assert_near(second, layer.expected(kept, 0))


@pytest.mark.parametrize(('height', 'rows', 'threads'), [(180, 16, 2), (64, 16, 2), (7, 16, 4), (33, 8, 3), (1, 4, 1)])
def test_bands_share_out_evenly(height, rows, threads):
    scratch = Scratch(1, (3, 3), 1, rows, 2)
    schedule = uniform_schedule(1, height, 40, 0, scratch, threads)
    strips = schedule.strips[schedule.bands['first']]
    assert strips['y'].tolist() == [0, *strips['rows'].cumsum()[:-1].tolist()] and strips['rows'].sum() == height
    assert strips['rows'].min() > 0 and strips['rows'].max() <= rows
    assert strips['rows'].max() - strips['rows'][:-1].min(initial=rows) <= 4
    assert len(strips) % threads == 0 or len(strips) < 2 * threads
