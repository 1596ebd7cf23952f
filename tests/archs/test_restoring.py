"""Routing of whole networks: by tile on one feature map, by image elsewhere, within a budget, with true MACs."""

import logging

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from networks import IMAGE_CASES, REACH, WHOLE_CASES, Case
from references import assert_near, level_at, masked_by_hand
from torch import nn
from torch.nn import functional as F

from cp_basicsr.routing import BudgetError
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.sparsity import LevelMapRoute, routed
from cp_basicsr.sparsity.placement import TileGrid


def mapped(net, x, levels, tile):
    route = LevelMapRoute(TileGrid(levels, tile, *x.shape[-2:]))
    with torch.no_grad(), routed(route):
        return net.base(x), route


def at_level(net, x, level):
    with torch.no_grad():
        return net(x, level=level)


@pytest.mark.parametrize('name', IMAGE_CASES)
def test_a_map_of_one_level_is_the_subnet_and_the_densest_the_base(name):
    net, x = IMAGE_CASES[name].net(), IMAGE_CASES[name].input(2)
    tile = 4 if x.shape[-1] != 7 else 5
    grid = (-(-x.shape[-2] // tile), -(-x.shape[-1] // tile))
    for level in (0, 1, 2):
        output, route = mapped(net, x, torch.full((2, *grid), level), tile)
        assert_near(output, at_level(net, x, level))
        assert net.macs(x.shape[1:]).spent(route.positions, 2) == 2 * net.macs(x.shape[1:]).level(level)


@pytest.mark.parametrize('name', IMAGE_CASES)
def test_images_with_different_maps_equal_each_alone(name):
    net, x = IMAGE_CASES[name].net(), IMAGE_CASES[name].input(2)
    tile, (height, width) = 4, x.shape[-2:]
    levels = torch.randint(0, 3, (2, -(-height // tile), -(-width // tile)), generator=torch.Generator().manual_seed(3))
    together, route = mapped(net, x, levels, tile)
    spent = 0
    for b in range(2):
        alone, own = mapped(net, x[b : b + 1], levels[b : b + 1], tile)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-4)
        spent += net.macs(x.shape[1:]).spent(own.positions)
    assert net.macs(x.shape[1:]).spent(route.positions, 2) == spent


@pytest.mark.parametrize('name', REACH)
def test_pixels_that_see_one_level_only_equal_that_subnet(name):
    case, reach = IMAGE_CASES[name], REACH[name]
    half = -(-(reach + 8) // 8) * 8
    x = torch.rand(1, case.shape[0], 8, 2 * half, generator=torch.Generator().manual_seed(2))
    net = case.net()
    levels = torch.cat([torch.zeros(1, 1, half // 8), torch.full((1, 1, half // 8), 2)], dim=2).long()
    output, _ = mapped(net, x, levels, 8)
    easy, hard = at_level(net, x, 0), at_level(net, x, 2)
    left, right = (half - reach) * case.scale, (half + reach) * case.scale
    torch.testing.assert_close(output[..., :left], easy[..., :left], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output[..., right:], hard[..., right:], rtol=1e-4, atol=1e-5)
    middle = half * case.scale
    assert not torch.allclose(output[..., :middle], easy[..., :middle], rtol=1e-4, atol=1e-5), 'neighbours are read'
    assert not torch.allclose(easy, hard, rtol=1e-3, atol=1e-4), 'the test would show nothing'


@pytest.mark.parametrize('block', [0, 1], ids=['plain windows', 'shifted windows'])
@pytest.mark.parametrize('part', ['attn.qkv', 'attn.proj', 'mlp.fc1'])
def test_each_token_of_swinir_takes_the_level_of_its_own_pixel(block, part):
    case, tile, window = IMAGE_CASES['SwinIR colour denoising'], 3, 4
    net, x = case.net(), case.input(2)
    height, width = x.shape[-2:]
    levels = torch.randint(0, 3, (2, 3, 4), generator=torch.Generator().manual_seed(4))
    layer = net.base.layers[0].residual_group.blocks[block].get_submodule(part)
    seen = []
    handle = layer.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].clone(), output.clone()))
    )
    mapped(net, x, levels, tile)
    handle.remove()
    (tokens, outputs), shift = seen[0], (0, window // 2)[block]
    weights = [masked_by_hand(layer.weight.detach(), n, 4) for n in net.levels]
    for row in range(tokens.shape[0]):
        for token in range(tokens.shape[1]):
            if part.startswith('attn'):
                image, index = divmod(row, (height // window) * (width // window))
                top, left = (window * i for i in divmod(index, width // window))
                dy, dx = divmod(token, window)
                y, x_ = (top + dy + shift) % height, (left + dx + shift) % width
            else:
                image, (y, x_) = row, divmod(token, width)
            level = level_at(levels[image], tile, y, x_, (height, width), (height, width))
            expected = F.linear(tokens[row, token], weights[level], layer.bias)
            torch.testing.assert_close(outputs[row, token], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('held', 'densest'), [([0, 0, 1], 1), ([0, 2, 1], 2)])
def test_channel_attention_runs_at_the_densest_level_the_image_holds(held, densest):
    net, x = IMAGE_CASES['RCAN'].net(), IMAGE_CASES['RCAN'].input()
    layer = net.base.body[0].residual_group[0].rcab[3].attention[1]
    seen = []
    handle = layer.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].clone(), output.clone()))
    )
    _, route = mapped(net, x, torch.tensor([[held, [0, 0, 0]]]), 4)
    handle.remove()
    pooled, output = seen[0]
    expected = F.conv2d(pooled, masked_by_hand(layer.weight.detach(), net.levels[densest], 4), layer.bias)
    torch.testing.assert_close(output, expected)
    assert route.positions[layer.layer_name] == [int(level == densest) for level in range(3)]


@pytest.mark.parametrize('name', ['EDSR', 'RRDBNet x2', 'RRDBNet x1', 'SwinIR JPEG', 'DUF', 'TOFlow'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_a_budget_is_spent_within_one_tile_or_one_image(name, share):
    case = (IMAGE_CASES | WHOLE_CASES)[name]
    net, x = case.net(), case.input(2)
    if x.dim() == 4:
        x = x.repeat(1, 1, 8, 8)  # the classifier's share of a tiny image is large
    shape = x.shape[1:]
    costs = net.costs(shape)
    tile = 4 if x.dim() == 4 else None
    overhead = net.classifier_macs(shape, tile) / net.macs(shape).dense
    budget = float(costs[0] + share * (costs[-1] - costs[0])) + overhead
    net.choice = RoutingChoice(budget=budget, tile=4)
    with torch.no_grad():
        restored = net.restore(x)
        assert torch.equal(net(x), restored.image)
    if tile:
        assert restored.tile == 4 and restored.levels.shape == (2, shape[-2] // 4, -(-shape[-1] // 4))
        assert restored.macs_share == pytest.approx(budget, abs=0.02)
    else:
        assert restored.tile is None and restored.levels.shape == (2, 1, 1)
        nearest = int((costs + overhead - budget).abs().argmin())
        assert restored.levels.flatten().tolist() == [nearest] * 2
        assert restored.macs == 2 * (net.macs(shape).level(nearest) + net.classifier_macs(shape, None))


@pytest.mark.parametrize('budget', [0.1, 1.2])
def test_a_budget_that_no_levels_allow_is_refused_with_the_range(budget):
    net = IMAGE_CASES['EDSR'].net()
    net.choice = RoutingChoice(budget=budget)
    with pytest.raises(BudgetError, match=rf'val\.budget is {budget}, outside what the levels allow: 0\.\d+ .* 1\.\d+'):
        net(torch.zeros(1, 3, 64, 64))


def test_a_forced_level_needs_no_classifier_and_argmax_takes_its_most_probable():
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input()
    restored = net.restore(x, RoutingChoice(level=-2))
    assert restored.macs == net.macs(x.shape[1:]).level(1)
    assert torch.equal(restored.image, net(x, level=1))
    restored = net.restore(x, RoutingChoice(tile=4))
    assert torch.equal(restored.levels, net.predict(x, 4).argmax(dim=1))


class Padded(nn.Module):
    """A layer whose map is larger than the image by two pixels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=2)
        self.tail = nn.Conv2d(8, 3, 3)

    def forward(self, x):
        return self.tail(self.wide(self.head(x)))


def test_a_network_that_cannot_be_placed_is_routed_by_image_after_one_warning():
    ARCH_REGISTRY.register(Padded)
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger('basicsr').addHandler(handler)
    try:
        net, x = Case({'type': 'Padded'}).net(), torch.rand(2, 3, 64, 64)
        overhead = net.classifier_macs(x.shape[1:], None) / net.macs(x.shape[1:]).dense
        costs = net.costs(x.shape[1:])
        # Between two levels, so that tiles mix; a whole image takes the nearer one.
        choice = RoutingChoice(budget=float(0.7 * costs[1] + 0.3 * costs[2]) + overhead, tile=16)
        for _ in range(2):
            restored = net.restore(x, choice)
            assert restored.tile is None and restored.levels.flatten().tolist() == [1, 1]
            assert torch.equal(restored.image, net(x, level=1))
    finally:
        logging.getLogger('basicsr').removeHandler(handler)
        del ARCH_REGISTRY._obj_map['Padded']
    placed = [message for message in messages if 'cannot be placed' in message]
    assert len(placed) == 1
    for text in ('Padded is routed by image', 'wide', '66 x 66', '64 x 64'):
        assert text in placed[0]
