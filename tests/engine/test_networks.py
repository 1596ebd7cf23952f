"""Every architecture in compiled code: against PyTorch, baked subnets, and level maps applied by hand."""

import functools

import pytest
import torch
from networks import IMAGE_CASES, REACH, WHOLE_CASES
from references import assert_near, selected_by_hand
from torch import nn

from cp_basicsr.archs.restoring import restore_by_map
from cp_basicsr.sparsity import LevelMapRoute, UniformRoute, prunable_layers, routed
from cp_basicsr.sparsity.placement import TileGrid

# Their code asks for sizes or values while it runs, so that its layers run one by one.
NOT_TRACED = ('SwinIR', 'ECBSR')
CONVOLUTIONAL = [name for name in IMAGE_CASES if not name.startswith('SwinIR')]


@functools.cache
def built(name):
    """A network, for all tests that leave it as it is."""
    return (IMAGE_CASES | WHOLE_CASES)[name].net()


def enlarged(name, batch=2):
    """An input for a network, of odd size where it takes one."""
    channels, height, width = IMAGE_CASES[name].shape
    size = (height, width) if built(name).multiple > 1 else (height + 5, width + 7)
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(5))


def random_levels(x, tile):
    rows, columns = (-(-side // tile) for side in x.shape[-2:])
    return torch.randint(0, 3, (x.shape[0], rows, columns), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def both(net, x, new_route):
    """Outputs of compiled code and of PyTorch; both count the same."""
    compiled, reference = new_route(), new_route()
    output = net.run_base(x, compiled)
    with routed(reference):
        expected = net.base(x)
    assert compiled.positions == reference.positions, 'MACs do not depend on what computes'
    return output, expected


def assert_runs_compiled(net, said):
    """Every prunable layer without dilation is compiled, and the log says so in one line."""
    layers = prunable_layers(net.base)
    dilated = [name for name, layer in layers.items() if getattr(layer, 'dilation', (1, 1)) != (1, 1)]
    assert [name for name, layer in layers.items() if layer not in net.engine.prepared.compiled.layers] == dilated
    (line,) = [line for line in said if 'Engine' in line]
    assert f'{len(layers) - len(dilated)} of {len(layers)} prunable layers run as compiled' in line
    assert all(name in line for name in dilated)
    assert ('layer by layer' in line) == net.base_options['type'].startswith(NOT_TRACED)


@pytest.mark.parametrize('name', IMAGE_CASES)
def test_uniform_and_mixed_levels_equal_the_reference_path(name, isa, log):
    net, x = IMAGE_CASES[name].net(), enlarged(name)
    for level in range(3):
        assert_near(*both(net, x, lambda level=level: UniformRoute(level)))
    for tile in (1, 4, 5):
        grid = TileGrid(random_levels(x, tile), tile, *x.shape[-2:])
        assert_near(*both(net, x, lambda grid=grid: LevelMapRoute(grid)))
    assert_runs_compiled(net, log)
    assert f'compiled {isa} code' in ' '.join(log)


@pytest.mark.parametrize('name', ['EDSR', 'SRVGGNetCompact', 'SwinIR pixelshuffle', 'RCAN'])
def test_layers_with_levels_of_their_own_equal_the_reference_path(name, isa):
    names = built(name).conversion.prunable
    net, x = IMAGE_CASES[name].net(layer_levels={names[0]: [2, 3, 4], names[-1]: [1, 3, 4]}), enlarged(name)
    shares = {
        tuple(layer.mask(k).float().mean().item() for k in range(3)) for layer in prunable_layers(net.base).values()
    }
    assert shares >= {(0.5, 0.75, 1.0), (0.25, 0.75, 1.0)}
    for level in range(3):
        assert_near(*both(net, x, lambda level=level: UniformRoute(level)))
        assert_near(net.run_base(x, UniformRoute(level)), net.bake(level)(x))
    grid = TileGrid(random_levels(x, 4), 4, *x.shape[-2:])
    assert_near(*both(net, x, lambda: LevelMapRoute(grid)))


@pytest.mark.parametrize('name', IMAGE_CASES)
@torch.no_grad()
def test_a_map_of_one_level_is_the_plain_subnet(name, compiled_code):
    net, x, tile = built(name), enlarged(name), 4
    for level in range(3):
        restored = restore_by_map(net, x, torch.full_like(random_levels(x, tile), level), tile)
        assert_near(restored.image, net.bake(level)(x))
        assert restored.macs == 2 * net.macs(x.shape[1:]).level(level)


@pytest.mark.parametrize('name', REACH)
@torch.no_grad()
def test_pixels_that_see_one_level_only_equal_that_plain_subnet(name, compiled_code):
    case, net, reach = IMAGE_CASES[name], built(name), REACH[name]
    half = -(-(reach + 8) // 8) * 8
    x = torch.rand(1, case.shape[0], 8, 2 * half, generator=torch.Generator().manual_seed(2))
    levels = torch.cat([torch.zeros(1, 1, half // 8), torch.full((1, 1, half // 8), 2)], dim=2).long()
    output = restore_by_map(net, x, levels, 8).image
    easy, hard = net.bake(0)(x), net.bake(2)(x)
    left, right = (half - reach) * case.scale, (half + reach) * case.scale
    assert_near(output[..., :left], easy[..., :left])
    assert_near(output[..., right:], hard[..., right:])
    middle = half * case.scale
    assert not torch.allclose(output[..., :middle], easy[..., :middle], rtol=1e-4, atol=1e-5), 'neighbours are read'


def level_map_by_hand(net, x, levels, tile):
    """A plain network whose convolutions compute every level on the whole map and whose pixels are picked by loops.

    A map of 1 x 1 (channel attention) takes the densest level that its image holds.
    """
    plains = [net.bake(level) for level in range(3)]

    def picked(outputs):
        if outputs[0].shape[-2:] == (1, 1):
            return torch.stack([outputs[int(own.max())][b] for b, own in enumerate(levels)])
        return selected_by_hand(outputs, levels, tile, tuple(x.shape[-2:]))

    for name in net.conversion.prunable:
        layers = [plain.get_submodule(name) for plain in plains]
        forwards = [layer.forward for layer in layers]
        layers[-1].forward = lambda y, forwards=forwards: picked([forward(y) for forward in forwards])
    return plains[-1](x)


@pytest.mark.parametrize('name', CONVOLUTIONAL)
@torch.no_grad()
def test_a_mixed_map_equals_one_applied_by_hand(name, compiled_code):
    net, x, tile = built(name), enlarged(name), 3
    levels = random_levels(x, tile)
    levels[1] = levels[1].clamp(max=1)  # an image without the densest level
    assert_near(restore_by_map(net, x, levels, tile).image, level_map_by_hand(net, x, levels, tile))


@pytest.mark.parametrize('name', WHOLE_CASES)
def test_networks_routed_as_a_whole_equal_the_reference_path(name, compiled_code, request):
    case = WHOLE_CASES[name]
    if case.needs_deform:
        request.getfixturevalue('deform_conv')
    net, x = case.net(), case.input()
    for level in (0, 2):
        assert_near(*both(net, x, lambda level=level: UniformRoute(level)))


@torch.no_grad()
def test_images_do_not_influence_each_other(compiled_code):
    net, x = built('EDSR'), enlarged('EDSR', batch=3)
    levels = random_levels(x, 4)
    together = restore_by_map(net, x, levels, 4).image
    for b in range(3):
        assert_near(together[b : b + 1], restore_by_map(net, x[b : b + 1], levels[b : b + 1], 4).image)


@torch.no_grad()
def test_one_n_for_each_layer_and_values_of_their_own(compiled_code):
    net = IMAGE_CASES['EDSR'].net(weights='per_level', m=8, levels=[1, 3, 8], exclude=['conv_after_body'])
    for layer in prunable_layers(net.base).values():
        for own in (*layer.level_weights, *layer.level_biases):
            own.add_(0.05 * torch.randn_like(own))
    x = enlarged('EDSR')
    assert isinstance(net.base.conv_after_body, nn.Conv2d)
    for level in range(3):
        assert_near(*both(net, x, lambda level=level: UniformRoute(level)))
        assert_near(net(x, level=level), net.bake(level)(x))
