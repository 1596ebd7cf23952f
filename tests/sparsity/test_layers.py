import pytest
import torch
import torch.nn.functional as F
from references import masked_by_hand
from torch import nn

from cp_basicsr.sparsity import NMPattern, UniformRoute, convert, prunable_layers, routed, set_straight_through

PATTERN = NMPattern(4, [1, 2, 4])
CONVOLUTIONS = [
    {'kernel_size': 3, 'padding': 1},
    {'kernel_size': 1, 'bias': False},
    {'kernel_size': (3, 2), 'stride': (2, 1)},
    {'kernel_size': 3, 'dilation': 2, 'padding': 2},
    {'kernel_size': 3, 'padding': 'same'},
    {'kernel_size': 3, 'padding': 1, 'padding_mode': 'reflect'},
    {'kernel_size': 3, 'padding': (1, 2), 'padding_mode': 'circular'},
    {'kernel_size': 5, 'padding': 2, 'padding_mode': 'replicate', 'stride': 2},
]


def supernet(layer, pattern=PATTERN, weights='shared'):
    net = nn.Sequential(layer)
    convert(net, pattern, weights=weights)
    return net


def at(net, level, x):
    with routed(UniformRoute(level)):
        return net(x)


def conv2d_by_hand(x, layer, weight):
    """The plain function, with padding other than zeros done before it."""
    padding = layer.padding
    if layer.padding_mode != 'zeros':
        rows, columns = layer.padding
        x, padding = F.pad(x, (columns, columns, rows, rows), mode=layer.padding_mode), 0
    return F.conv2d(x, weight, layer.bias, layer.stride, padding, layer.dilation)


@pytest.mark.parametrize('options', CONVOLUTIONS, ids=str)
@pytest.mark.parametrize('in_width', [8, 10])
def test_conv2d_at_a_level_is_the_convolution_with_masked_weights(options, in_width):
    torch.manual_seed(0)
    layer = nn.Conv2d(in_width, 5, **options)
    net, x = supernet(layer), torch.randn(2, in_width, 9, 8)
    for level, n in enumerate(PATTERN.levels):
        expected = conv2d_by_hand(x, layer, masked_by_hand(layer.weight, n, 4))
        torch.testing.assert_close(at(net, level, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(6,), (2, 6), (2, 3, 6), (2, 3, 4, 6)])
def test_linear_at_a_level_is_the_product_with_masked_weights(shape):
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    net, x = supernet(layer), torch.randn(shape)
    for level, n in enumerate(PATTERN.levels):
        expected = F.linear(x, masked_by_hand(layer.weight, n, 4), layer.bias)
        torch.testing.assert_close(at(net, level, x), expected)


def test_conv3d_at_a_level_is_the_convolution_with_masked_weights():
    torch.manual_seed(0)
    layer = nn.Conv3d(7, 3, (1, 3, 3), padding=(0, 1, 1), stride=(1, 2, 1))
    net, x = supernet(layer), torch.randn(2, 7, 3, 6, 5)
    for level, n in enumerate(PATTERN.levels):
        weight = masked_by_hand(layer.weight, n, 4)
        expected = F.conv3d(x, weight, layer.bias, stride=(1, 2, 1), padding=(0, 1, 1))
        torch.testing.assert_close(at(net, level, x), expected)


@pytest.mark.parametrize(
    ('kind', 'options', 'shape'),
    [
        (nn.Conv2d, (6, 4, 3), (2, 6, 7, 5)),
        (nn.Conv3d, (6, 4, 3), (1, 6, 3, 4, 5)),
        (nn.Linear, (6, 4), (2, 7, 6)),
    ],
)
@pytest.mark.parametrize('weights', ['shared', 'per_level'])
def test_without_a_route_and_at_the_densest_level_the_layer_is_the_plain_one_bit_for_bit(kind, options, shape, weights):
    layer, x = kind(*options), torch.randn(shape)
    plain = layer(x)
    net = supernet(layer, weights=weights)
    assert torch.equal(net(x), plain)
    assert torch.equal(at(net, 2, x), plain)
    assert torch.equal(at(net, -1, x), plain)


def test_straight_through_gradients_are_those_of_a_dense_layer_with_the_masked_values():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, padding=1)
    net, x, seed = supernet(layer), torch.randn(2, 6, 5, 5, requires_grad=True), torch.randn(2, 4, 5, 5)
    at(net, 0, x).backward(seed)
    masked = masked_by_hand(layer.weight.detach(), 1, 4).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    F.conv2d(twin, masked, layer.bias.detach(), padding=1).backward(seed)
    torch.testing.assert_close(layer.weight.grad, masked.grad)
    torch.testing.assert_close(x.grad, twin.grad)
    assert (layer.weight.grad != 0).all(), 'weights that the mask holds at zero learn too'
    torch.testing.assert_close(layer.bias.grad, seed.sum(dim=(0, 2, 3)))


def test_without_straight_through_only_the_kept_weights_learn():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, padding=1)
    net, x = supernet(layer), torch.randn(2, 6, 5, 5)
    set_straight_through(net, False)
    at(net, 0, x).square().sum().backward()
    kept = masked_by_hand(layer.weight.detach(), 1, 4) != 0
    assert (layer.weight.grad != 0).equal(kept)


def test_per_level_values_learn_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(36, 2, bias=False))
    base = {name: value.detach().clone() for name, value in net.named_parameters()}
    convert(net, PATTERN, weights='per_level')
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0)
    at(net, 1, torch.randn(2, 8, 5, 5)).square().mean().backward()
    optimizer.step()
    for name, value in base.items():
        assert torch.equal(net.get_parameter(name), value), name
    own = prunable_layers(net)['0']
    assert torch.equal(own.level_weights[0], base['0.weight']), 'another level'
    assert not torch.equal(own.level_weights[1], base['0.weight'])
    assert not torch.equal(own.level_biases[1], base['0.bias'])
    assert prunable_layers(net)['2'].level_biases is None


def test_per_level_values_are_used_with_the_masks_of_the_dense_weights():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    net, x = supernet(layer, weights='per_level'), torch.randn(3, 8)
    with torch.no_grad():
        layer.level_weights[0].copy_(torch.randn(4, 8))
        layer.level_biases[0].copy_(torch.randn(4))
    mask = masked_by_hand(layer.weight, 1, 4) != 0
    torch.testing.assert_close(at(net, 0, x), F.linear(x, layer.level_weights[0] * mask, layer.level_biases[0]))
    torch.testing.assert_close(at(net, -1, x), F.linear(x, layer.weight, layer.bias))


def test_ranks_stay_until_they_are_refreshed():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    net, x = supernet(layer), torch.eye(4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert at(net, 0, x).flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
    assert layer.refresh_ranks() == 4
    assert at(net, 0, x).flatten().tolist() == [0.0, 0.0, 0.0, 4.0]
    assert layer.refresh_ranks() == 0
