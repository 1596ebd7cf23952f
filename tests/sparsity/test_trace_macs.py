import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cp_basicsr.sparsity import (
    LevelMapRoute,
    NMPattern,
    UniformRoute,
    convert,
    routed,
    trace_macs,
)
from cp_basicsr.sparsity.placement import TileGrid

PATTERN = NMPattern(4, [1, 2, 4])
COUNTS = (1, 2, 4)


def table(*layers, shape, pattern=PATTERN, **options):
    net = nn.Sequential(*layers)
    convert(net, pattern, **options)
    return trace_macs(net, shape)


def levels(macs):
    return [macs.level(k) for k in range(3)]


def test_a_strided_convolution():
    # 9 x 7 pixels at stride 2 with padding 1 are 5 x 4.
    macs = table(nn.Conv2d(8, 6, 3, stride=2, padding=1), shape=(1, 8, 9, 7))
    assert levels(macs) == [5 * 4 * 6 * 9 * 2 * n for n in COUNTS]
    assert macs.fixed == 0
    assert macs.dense == macs.level(-1) == macs.level(2)


def test_a_remainder_group():
    # 10 channels in groups of 4, 4 and 2; the last keeps 1, 1, 2.
    macs = table(nn.Conv2d(10, 6, (1, 3)), shape=(1, 10, 4, 5))
    assert levels(macs) == [4 * 3 * 6 * 3 * kept for kept in (1 + 1 + 1, 2 + 2 + 1, 10)]


def test_a_linear_layer_over_tokens():
    macs = table(nn.Linear(8, 5), shape=(1, 7, 8))
    assert levels(macs) == [7 * 5 * 2 * n for n in COUNTS]


def test_a_convolution_in_three_dimensions():
    macs = table(nn.Conv3d(4, 5, (1, 3, 3), padding=(0, 1, 1)), shape=(1, 4, 3, 6, 6))
    assert levels(macs) == [3 * 6 * 6 * 5 * 9 * n for n in COUNTS]


def test_dense_layers_count_at_every_level():
    macs = table(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Conv2d(4, 4, 1),
        shape=(1, 3, 6, 5),
    )
    fixed = 30 * 9 * 3 * 8 + 30 * 9 * 4 * 8 + 30 * 4 * 8 * 4
    assert macs.fixed == fixed
    assert levels(macs) == [fixed + 120 * 4 * n for n in COUNTS]
    assert list(macs.layers) == ['3']


def test_a_layer_used_twice_counts_twice_and_one_never_used_not_at_all():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(self.used(x))

    net = Twice()
    convert(net, PATTERN)
    macs = trace_macs(net, (1, 4))
    assert levels(macs) == [2 * 4 * n for n in COUNTS]
    assert macs.layers['unused'].positions == 0


class Attention(nn.Module):
    """Three kinds of products besides the layers; ``look`` makes the forward pass depend on the data."""

    def __init__(self, look=False):
        super().__init__()
        self.qkv, self.look = nn.Linear(8, 24), look

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.look and float(x.sum()) > 1e9:
            return q
        return F.scaled_dot_product_attention(q, k, v) + (q @ k.transpose(1, 2)).softmax(-1) @ v


@pytest.mark.parametrize('look', [False, True], ids=['meta device', 'real run'])
def test_attention_products_count_at_every_level_on_the_meta_device_and_in_a_real_run(look):
    net = Attention(look).train()
    net.drop = nn.Dropout().eval()
    convert(net, PATTERN)
    macs = trace_macs(net, (1, 10, 8))
    # Two products of 10 x 10 x 8 in each of the two forms of attention.
    assert macs.fixed == 2 * (2 * 10 * 10 * 8)
    assert levels(macs) == [macs.fixed + 10 * 24 * 2 * n for n in COUNTS]
    assert net.training and net.qkv.training and not net.drop.training, 'modes stay as they were'


def test_counting_leaves_no_trace_in_the_network():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    convert(net, PATTERN)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    trace_macs(net, (1, 4, 5, 5))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


@pytest.mark.parametrize('level', [0, 1, 2])
def test_a_uniform_route_spends_the_levels_macs(level):
    net, route = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2)), UniformRoute(level)
    convert(net, PATTERN)
    macs = trace_macs(net, (1, 3, 9, 9))
    with routed(route):
        net(torch.zeros(5, 3, 9, 9))
    assert macs.spent(route.positions, samples=5) == 5 * macs.level(level)


def test_a_level_map_spends_the_sum_over_its_tiles():
    """Two images of 7 x 10 in tiles of 4; a layer at lq size, one at twice it, one global."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(4, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 2, 1),
    )
    convert(net, PATTERN)
    macs = trace_macs(net, (1, 3, 7, 10))
    map_a, map_b = [[0, 1, 2], [2, 0, 1]], [[0, 0, 1], [1, 1, 0]]
    route = LevelMapRoute(TileGrid(torch.tensor([map_a, map_b]), 4, 7, 10))
    with routed(route):
        net(torch.randn(2, 3, 7, 10))
    expected = 2 * 70 * 9 * 3 * 8
    for level_map, densest in ((map_a, 2), (map_b, 1)):
        for row, height in enumerate((4, 3)):
            for column, width in enumerate((4, 4, 2)):
                n, pixels = COUNTS[level_map[row][column]], height * width
                expected += pixels * 9 * 16 * 2 * n + 4 * pixels * 4 * n
        expected += 2 * COUNTS[densest]
    assert macs.spent(route.positions, samples=2) == expected
