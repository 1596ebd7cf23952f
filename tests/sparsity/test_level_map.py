import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from references import masked_by_hand, selected_by_hand
from torch import nn

from cp_basicsr.sparsity import (
    LevelMapRoute,
    NMPattern,
    UniformRoute,
    UnplacedLayerError,
    active_route,
    convert,
    routed,
)
from cp_basicsr.sparsity.placement import TileGrid

PATTERN = NMPattern(4, [1, 2, 4])


class Pyramid(nn.Module):
    """Layers at lq size, below it and above it."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 24, 3, padding=2, dilation=2)
        self.up = nn.Conv2d(6, 8, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        y = self.middle(F.relu(self.down(x)))
        y = self.shuffle(y)[..., : x.shape[-2], : x.shape[-1]] + x
        return self.up(F.interpolate(y, scale_factor=3, mode='nearest'))


@functools.cache
def pyramid():
    torch.manual_seed(0)
    net = Pyramid().eval()
    convert(net, PATTERN)
    return net


@functools.cache
def masked_weights(layer):
    return [masked_by_hand(layer.weight, n, 4) for n in PATTERN.levels]


def by_hand(net, x, levels, tile):
    """The same network with every layer computed at every level, masked by loops, and pixels picked by loops."""
    lq = tuple(x.shape[-2:])

    def layer(own, y):
        outputs = [
            F.conv2d(y, weight, own.bias, own.stride, own.padding, own.dilation) for weight in masked_weights(own)
        ]
        return selected_by_hand(outputs, levels, tile, lq)

    y = layer(net.middle, F.relu(layer(net.down, x)))
    y = net.shuffle(y)[..., : lq[0], : lq[1]] + x
    return layer(net.up, F.interpolate(y, scale_factor=3, mode='nearest'))


def mapped(net, x, levels, tile):
    with routed(LevelMapRoute(TileGrid(levels, tile, *x.shape[-2:]))):
        return net(x)


def uniform(net, x, level):
    with routed(UniformRoute(level)):
        return net(x)


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 9), st.integers(0, 10**6))
def test_a_mixed_map_equals_the_slow_reference(height, width, tile, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 6, height, width, generator=generator)
    levels = torch.randint(0, 3, (2, -(-height // tile), -(-width // tile)), generator=generator)
    net = pyramid()
    if (-(-height // 2), -(-width // 2)) == (1, 1) and (height, width) != (1, 1):
        return  # a 1 x 1 map counts as global; see test_placement.py
    torch.testing.assert_close(mapped(net, x, levels, tile), by_hand(net, x, levels, tile), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('level', [0, 1, 2])
def test_a_map_of_one_level_is_the_subnet(level):
    net, x = pyramid(), torch.randn(2, 6, 11, 9)
    levels = torch.full((2, 3, 3), level)
    assert torch.equal(mapped(net, x, levels, 4), uniform(net, x, level))
    if level == 2:
        assert torch.equal(mapped(net, x, levels, 4), net(x)), 'and the densest is the plain network'


@torch.no_grad()
def test_pixels_that_see_one_level_only_equal_that_subnet():
    """The receptive field of Pyramid reaches 9 lq pixels to each side: 1 + 2 * 2 * 2 - 1 and 1 above."""
    net, x = pyramid(), torch.randn(1, 6, 16, 48)
    levels = torch.tensor([[[0, 0, 0, 2, 2, 2]] * 2])
    y = mapped(net, x, levels, 8)
    easy, hard = uniform(net, x, 0), uniform(net, x, 2)
    border, reach = 24 * 3, 9 * 3
    torch.testing.assert_close(y[..., : border - reach], easy[..., : border - reach])
    torch.testing.assert_close(y[..., border + reach :], hard[..., border + reach :])
    assert not torch.allclose(y[..., :border], easy[..., :border]), 'true neighbours are read, whatever their level'


@torch.no_grad()
def test_images_of_a_batch_do_not_influence_each_other():
    net, x = pyramid(), torch.randn(2, 6, 10, 7)
    levels = torch.randint(0, 3, (2, 4, 3))
    together = mapped(net, x, levels, 3)
    for b in range(2):
        torch.testing.assert_close(together[b : b + 1], mapped(net, x[b : b + 1], levels[b : b + 1], 3))


def test_gradients_reach_each_level_from_its_own_tiles():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 1, bias=False)
    net = nn.Sequential(layer)
    convert(net, PATTERN, weights='per_level')
    x = torch.randn(1, 4, 2, 2)
    mapped(net, x, torch.tensor([[[0, 1], [1, 2]]]), 1).sum().backward()
    row = x[0].flatten(1)
    for parameter, pixels in ((layer.level_weights[0], [0]), (layer.level_weights[1], [1, 2]), (layer.weight, [3])):
        expected = row[:, pixels].sum(dim=1).expand(4, 4)
        torch.testing.assert_close(parameter.grad[..., 0, 0], expected)


def test_a_layer_that_cannot_be_placed_is_named_with_the_reason():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(4, 4, 3, padding=2)

        def forward(self, x):
            return self.wide(x)

    net = Padded()
    convert(net, PATTERN)
    with pytest.raises(UnplacedLayerError, match=r'^wide: a map of 10 x 10 does not span an image of 8 x 8'):
        mapped(net, torch.zeros(1, 4, 8, 8), torch.tensor([[[0, 1], [1, 0]]]), 4)
    assert active_route() is None, 'the route ends with its block, also by an exception'


@torch.no_grad()
def test_two_threads_run_two_routes_at_once():
    net, x = pyramid(), torch.randn(1, 6, 8, 8)
    expected = [uniform(net, x, level) for level in (0, 2)]
    meeting, results = threading.Barrier(2, timeout=30), [None, None]

    # Neither thread enters a layer before the other stands at it, within its own route.
    def meet(*_):
        meeting.wait()

    handles = [layer.register_forward_pre_hook(meet) for layer in (net.down, net.up)]

    def work(index, level):
        with torch.no_grad():
            results[index] = uniform(net, x, level)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((0, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    for result, alone in zip(results, expected, strict=True):
        assert torch.equal(result, alone)


def test_routes_nest_and_end():
    outer, inner = UniformRoute(0), UniformRoute(1)
    with routed(outer):
        with routed(inner):
            assert active_route() is inner
        assert active_route() is outer
    assert active_route() is None
