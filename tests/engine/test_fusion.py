"""Networks as users write them: what may be fused is, what may not is not, and the result is that of PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from references import assert_near
from torch import nn

from cp_basicsr.engine import NetworkEngine
from cp_basicsr.engine.fusion import FusedLayer, fused
from cp_basicsr.sparsity import LevelMapRoute, NMPattern, UniformRoute, convert, routed
from cp_basicsr.sparsity.placement import TileGrid


class Net(nn.Module):
    """Two convolutions of 8 channels, one more that widens, and what a test does with them."""

    def __init__(self, forward):
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 72, 3, padding=1)
        self.two = nn.Conv2d(16, 8, 1)
        self.pair = nn.Conv2d(2, 8, 3, padding=1)  # too narrow to be pruned
        self.relu = nn.ReLU(inplace=True)
        self.leaky = nn.LeakyReLU(0.1)
        self.steep = nn.LeakyReLU(1.5)
        self.each = nn.PReLU(8, -0.3)
        self.one = nn.PReLU()
        self.shuffle = nn.PixelShuffle(3)
        with torch.no_grad():
            self.each.weight.copy_(torch.linspace(-1, 1, 8))
        self._forward = [forward]

    def forward(self, x):
        return self._forward[0](self, x)


def input_changed_meanwhile(n, x):
    """The sum is made later than the convolution, whose input has changed by then."""
    y = x * 1.0
    z = n.a(y)
    y += 1
    return z + y


def residual_changed_afterwards(n, x):
    y = x * 1.0
    z = n.a(x) + y
    y += 1
    return z * y


def other_operand_in_place(n, x):
    y = x * 1.0
    y += n.a(x)
    return y


def enlarged_changed(n, x):
    y = x * 1.0
    z = F.interpolate(y, scale_factor=2)
    y += 1
    return n.a(z) + F.interpolate(y, scale_factor=2)


def output_used_twice(n, x):
    y = n.a(x)
    return F.relu(y) + n.b(y)


def in_place_on_an_output_used_twice(n, x):
    y = n.a(x)
    z = n.b(y)
    return n.relu(y) + z


def changed_by_position(n, x):
    y = x * 1.0
    z = n.a(y)
    F.leaky_relu(y, 0.2, True)
    return z + y


def concatenation_changed(n, x):
    y, z = n.a(x), n.b(x)
    both = torch.cat([y, z], 1)
    y.mul_(2.0)
    return n.two(both) + y


def concatenation_used_twice(n, x):
    both = torch.cat((n.a(x), x), dim=1)
    return n.two(both) * both[:, :8]


# Forwards, and how many operations are left beside the fused layers; None: no matter.
FORWARDS = {
    'relu module': (lambda n, x: n.relu(n.a(x)), 0),
    'relu function': (lambda n, x: F.relu(n.a(x), inplace=True), 0),
    'relu method': (lambda n, x: n.a(x).relu_(), 0),
    'leaky module': (lambda n, x: n.leaky(n.a(x)), 0),
    'leaky function': (lambda n, x: F.leaky_relu(n.a(x), 0.3), 0),
    'leaky by name': (lambda n, x: F.leaky_relu(n.a(x), negative_slope=0.3, inplace=True), 0),
    'leaky with a slope above 1': (lambda n, x: n.steep(n.a(x)), 0),
    'prelu of each channel': (lambda n, x: n.each(n.a(x)), 0),
    'prelu of one slope': (lambda n, x: n.one(n.wide(x)), 0),
    'gelu': (lambda n, x: F.gelu(n.a(x)), 0),
    'gelu of residual': (lambda n, x: F.gelu(n.a(x) + x), 1),
    'approximate gelu': (lambda n, x: F.gelu(n.a(x), approximate='tanh'), 1),
    'another activation': (lambda n, x: F.silu(n.a(x)), 1),
    'two activations': (lambda n, x: n.leaky(n.relu(n.a(x)) - 0.5), 2),
    'activation, then another': (lambda n, x: n.each(n.leaky(n.a(x))), 1),
    'shuffle': (lambda n, x: n.shuffle(n.wide(x)), 0),
    'shuffle, then activation': (lambda n, x: n.leaky(n.shuffle(n.wide(x))), 0),
    'activation, then shuffle': (lambda n, x: F.pixel_shuffle(n.relu(n.wide(x)), 3), 0),
    'shuffle, then prelu of each': (lambda n, x: n.each(n.shuffle(n.wide(x))), 1),
    'shuffle and residual': (lambda n, x: n.shuffle(n.wide(x)) + F.interpolate(x, scale_factor=3), 1),
    'residual': (lambda n, x: n.a(x) + x, 0),
    'residual on the left': (lambda n, x: x + n.a(x), 0),
    'residual by function': (lambda n, x: torch.add(n.a(x), x), 0),
    'residual times alpha': (lambda n, x: torch.add(n.a(x), x, alpha=0.5), 1),
    'residual by method': (lambda n, x: n.a(x).add(x), 0),
    'residual in place': (lambda n, x: n.a(x).add_(x), 0),
    'residual of a residual': (lambda n, x: n.b(n.relu(n.a(x)) + x) + x, None),
    'a sum with itself': (lambda n, x: (lambda y: y + y)(n.a(x)), 1),
    'a sum of two convolutions': (lambda n, x: n.a(x) + n.b(x), 0),
    'a sum with a number': (lambda n, x: n.a(x) + 0.5, 1),
    'a residual that is broadcast': (lambda n, x: n.a(x) + x.mean(dim=(2, 3), keepdim=True), None),
    'an output that is broadcast': (lambda n, x: n.a(x.mean(dim=(2, 3), keepdim=True)) + x, None),
    'scaled residual': (lambda n, x: n.a(x) * 0.2 + x, 0),
    'scaled on the left': (lambda n, x: x + 0.2 * n.a(x).mul(2), 0),
    'scaled only': (lambda n, x: n.a(x) * 0.2, 1),
    'scaled by a tensor': (lambda n, x: n.a(x) * x + x, 2),
    'scaled residual, then activation': (lambda n, x: n.leaky(n.a(x) * 0.2 + x), 1),
    'a difference': (lambda n, x: n.a(x) - x, 1),
    'one layer twice': (lambda n, x: n.a(n.relu(n.a(x))) + x, 0),
    'a dense layer': (lambda n, x: n.leaky(n.pair(x[:, :2])) + x, None),
    'concatenation': (lambda n, x: n.two(torch.cat([n.a(x), x], 1)), 0),
    'concatenation of three': (lambda n, x: n.two(torch.cat((x[:, :3], n.a(x), x[:, 3:]), dim=1)) + x, None),
    'concatenation along rows': (lambda n, x: n.a(torch.cat([x, x], 2)), 1),
    'concatenation counted from the end': (lambda n, x: n.two(torch.cat([n.a(x), x], -3)), None),
    'enlarged': (lambda n, x: n.a(F.interpolate(n.b(x), scale_factor=2, mode='nearest')), 0),
    'enlarged and stored with an activation': (lambda n, x: n.relu(n.a(F.interpolate(x, None, 2))), 0),
    'enlarged, read twice': (lambda n, x: [n.a(y) + n.b(y) for y in [F.interpolate(x, scale_factor=2)]][0], 0),
    'enlarged, kept': (lambda n, x: [n.a(y) + y for y in [F.interpolate(x, scale_factor=2)]][0], 1),
    'enlarged concatenation': (lambda n, x: n.two(F.interpolate(torch.cat([n.a(x), x], 1), scale_factor=2)), 0),
    'enlarged to a size': (lambda n, x: n.a(F.interpolate(x, size=(9, 30))), 1),
    'enlarged more': (lambda n, x: n.a(F.interpolate(x, scale_factor=3)), 1),
    'enlarged more along rows': (lambda n, x: n.a(F.interpolate(x, scale_factor=(4, 2))), 1),
    'enlarged smoothly': (lambda n, x: n.a(F.interpolate(x, scale_factor=2, mode='bilinear')), 1),
    'enlarged, in place later': (enlarged_changed, None),
    'split': (lambda n, x: n.a(n.wide(x).chunk(9, dim=1)[2]), None),
    'transposed': (lambda n, x: n.a(x.transpose(2, 3)).transpose(2, 3), None),
    'flattened and back': (lambda n, x: n.a(x).flatten(2).unflatten(2, x.shape[2:]) + x, None),
    'input in place': (input_changed_meanwhile, None),
    'residual in place later': (residual_changed_afterwards, None),
    'other operand in place': (other_operand_in_place, None),
    'output used twice': (output_used_twice, None),
    'in place on an output used twice': (in_place_on_an_output_used_twice, None),
    'in place by position': (changed_by_position, None),
    'part of a concatenation in place': (concatenation_changed, None),
    'concatenation used twice': (concatenation_used_twice, None),
    'a branch on the size': (lambda n, x: n.a(x) if x.shape[2] > 5 else n.b(x), None),
    'a branch on the values': (lambda n, x: n.a(x) if x.sum() > 0 else n.b(x), None),
    'a constant': (lambda n, x: n.a(x) * torch.tensor([0.5]) + torch.ones(1, 8, 1, 1), None),
    'several outputs': (lambda n, x: torch.cat(list({'y': n.a(x), 'z': n.relu(n.b(x))}.values()), 1), None),
}  # fmt: skip
NOT_TRACED = {'a branch on the size', 'a branch on the values'}


NOT_PLACED = {
    'an output that is broadcast',
    'concatenation along rows',
    'transposed',
    'enlarged to a size',
    'enlarged more along rows',
}


def routes_for(name, x):
    yield lambda: UniformRoute(0)
    yield lambda: UniformRoute(-1)
    if name not in NOT_PLACED:
        levels = torch.randint(3, (len(x), *(-(-side // 3) for side in x.shape[-2:])))
        yield lambda: LevelMapRoute(TileGrid(levels, 3, *x.shape[-2:]))


def operations_between(program):
    modules = dict(program.named_modules())
    nodes = [node for node in program.graph.nodes if node.op not in ('placeholder', 'output')]
    return [node for node in nodes if not isinstance(modules.get(node.target), FusedLayer)]


@pytest.mark.parametrize('name', FORWARDS)
@torch.no_grad()
def test_a_network_computes_what_it_does_in_pytorch(name, isa):
    torch.manual_seed(0)
    forward, left = FORWARDS[name]
    net, said = Net(forward).eval(), []
    convert(net, NMPattern(4, [1, 2, 4]))
    engine = NetworkEngine(1, (), said.append)
    for x in (torch.randn(2, 8, 7, 19), torch.randn(2, 8, 4, 40)):
        before = x.clone()
        for new_route in routes_for(name, x):
            route, expected_route = new_route(), new_route()
            output = engine.run(net, x, route)
            with routed(expected_route):
                assert_near(output, net(x))
            assert torch.equal(x, before)
            assert route.positions == expected_route.positions
    (line,) = said
    assert ('layer by layer' in line) == (name in NOT_TRACED), line
    if left is not None:
        assert len(operations_between(fused(net, 6)[0])) == left


class Centred(nn.Module):
    """Assigns to its attributes while it runs, as EDSR does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.mean = torch.full((1, 4, 1, 1), 0.5)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        return self.conv(x - self.mean) + self.mean


def test_tracing_leaves_the_network_as_it_was():
    net = Centred().eval()
    convert(net, NMPattern(4, [2, 4]))
    before = dict(vars(net))
    fused(net, 6)
    assert vars(net) == before


class Noisy(nn.Module):
    """Traced, its noise would be that of the trace for ever."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x) + torch.randn(1, 4, 1, 1)


@torch.no_grad()
def test_a_program_that_computes_something_else_is_not_used(compiled_code):
    net, said = Noisy().eval(), []
    convert(net, NMPattern(4, [2, 4]))
    engine, x = NetworkEngine(1, (), said.append), torch.randn(1, 4, 8, 8)
    first, second = engine.run(net, x, UniformRoute(0)), engine.run(net, x, UniformRoute(0))
    assert 'layer by layer (the traced network computes something else)' in said[0]
    assert not torch.allclose(first, second)


class Pyramid(nn.Module):
    """Four halvings, whose maps must fit the larger ones again: sides are multiples of 16."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(4))
        self.up = nn.ModuleList(nn.Conv2d(8, 32, 1) for _ in range(4))
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        maps = [self.first(x)]
        for down in self.down:
            maps.append(F.relu(down(maps[-1])))
        y = maps.pop()
        for up in self.up:
            y = F.pixel_shuffle(up(y), 2) + maps.pop()
        return self.last(y) + x


@torch.no_grad()
def test_a_network_that_does_not_take_every_size_is_traced_all_the_same(compiled_code):
    torch.manual_seed(0)
    net, said = Pyramid().eval(), []
    convert(net, NMPattern(4, [1, 2, 4]))
    engine, x = NetworkEngine(1, (), said.append), torch.randn(2, 3, 48, 80)
    levels = torch.randint(3, (2, 6, 10))
    for new_route in (lambda: UniformRoute(0), lambda: LevelMapRoute(TileGrid(levels, 8, 48, 80))):
        output = engine.run(net, x, new_route())
        with routed(new_route()):
            assert_near(output, net(x))
    assert 'layer by layer' not in said[0]
    with pytest.raises(RuntimeError):
        engine.run(net, torch.randn(1, 3, 24, 24), UniformRoute(0))
