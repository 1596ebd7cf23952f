"""The way networks run on a GPU, here on CPU tensors: the same outputs and counts as the reference path."""

import copy

import pytest
import torch
from networks import IMAGE_CASES, WHOLE_CASES
from references import NEAR, assert_near
from torch import nn
from torch.nn import functional as F

from cp_basicsr.engine import network_engine
from cp_basicsr.engine.accelerator import Accelerator
from cp_basicsr.engine.level_layers import LevelLayers
from cp_basicsr.engine.network_engine import run_reference
from cp_basicsr.sparsity import LevelMapRoute, PrunableLayer, UniformRoute, prunable_layers
from cp_basicsr.sparsity.placement import TileGrid

pytestmark = pytest.mark.usefixtures('one_thread')
TILE = 4


def random_map(x, tile=TILE):
    rows, columns = (-(-side // tile) for side in x.shape[-2:])
    levels = torch.randint(0, 3, (x.shape[0], rows, columns), generator=torch.Generator().manual_seed(3))
    return LevelMapRoute(TileGrid(levels, tile, *x.shape[-2:]))


def accelerated(net, x, route, precision='fp32', told=None):
    accelerator = Accelerator(lambda sentence: None if told is None else told.append(sentence))
    with torch.no_grad():
        return accelerator.run(net.base, x, route, precision)


def reference(net, x, route):
    with torch.no_grad():
        return run_reference(net.base, x, route)


@pytest.fixture
def computed(monkeypatch):
    """Outputs that convolutions and Linear layers computed, in elements."""
    elements = []

    def counting(function):
        def call(*arguments, **options):
            output = function(*arguments, **options)
            elements.append(output.numel())
            return output

        return call

    monkeypatch.setattr(F, 'conv2d', counting(F.conv2d))
    monkeypatch.setattr(F, 'linear', counting(F.linear))
    return elements


@pytest.mark.parametrize('tile', [4, 5])
@pytest.mark.parametrize('name', IMAGE_CASES)
def test_a_level_map_gives_the_outputs_and_counts_of_the_reference(name, tile):
    net, x = IMAGE_CASES[name].net(), IMAGE_CASES[name].input(2)
    expected, found = random_map(x, tile), random_map(x, tile)
    output = reference(net, x, expected)
    assert_near(accelerated(net, x, found), output)
    assert found.positions == expected.positions
    change = (reference(net, x, UniformRoute(-1)) - output).abs().max()
    assert change > 5 * NEAR * output.abs().max(), 'the test would show nothing'


@pytest.mark.parametrize('name', ['RCAN', 'ECBSR', 'SwinIR pixelshuffle', 'DUF', 'TOFlow'])
def test_one_level_gives_the_outputs_and_counts_of_the_subnet(name):
    case = (IMAGE_CASES | WHOLE_CASES)[name]
    net, x = case.net(), case.input(2)
    for level in (0, 2):
        expected, found = UniformRoute(level), UniformRoute(level)
        output = reference(net, x, expected)
        assert_near(accelerated(net, x, found), output)
        assert found.positions == expected.positions


@pytest.mark.parametrize('name', ['SRVGGNetCompact', 'SwinIR colour denoising'])
def test_no_output_of_a_level_map_is_computed_twice(name, computed):
    net, x = IMAGE_CASES[name].net(), IMAGE_CASES[name].input(2)
    accelerated(net, x, UniformRoute(-1))
    dense = sum(computed)
    computed.clear()
    accelerated(net, x, random_map(x))
    assert sum(computed) == dense


def test_where_neighbours_outweigh_a_tile_every_level_is_computed(computed):
    net, x = IMAGE_CASES['SRVGGNetCompact'].net(), IMAGE_CASES['SRVGGNetCompact'].input()
    accelerated(net, x, UniformRoute(-1))
    dense = sum(computed[1:])
    computed.clear()
    accelerated(net, x, random_map(x, tile=2))  # 4 x 4 pixels would be gathered for 2 x 2
    assert sum(computed[1:]) == 3 * dense


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('name', ['EDSR', 'SwinIR pixelshuffle', 'RCAN'])
def test_half_precision_is_near_and_comes_back_in_the_type_of_the_input(name, precision):
    net, x = IMAGE_CASES[name].net(), IMAGE_CASES[name].input()
    expected = reference(net, x, random_map(x))
    output = accelerated(net, x, random_map(x), precision)
    assert output.dtype == torch.float32
    error = float((output - expected).abs().max() / expected.abs().max())
    assert 1e-6 < error < {'bf16': 2e-2, 'fp16': 3e-3}[precision]


def test_values_are_masked_once_and_again_when_they_changed(monkeypatch):
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input()
    made = []
    original = PrunableLayer.level_values
    monkeypatch.setattr(
        PrunableLayer, 'level_values', lambda layer, level: made.append(level) or original(layer, level)
    )
    accelerator = Accelerator(lambda _: None)
    layers = prunable_layers(net.base)
    with torch.no_grad():
        for _ in range(2):
            before = accelerator.run(net.base, x, UniformRoute(1), 'fp32')
        assert made == [1] * len(layers)
        next(iter(layers.values())).weight.mul_(1.5)
        after = accelerator.run(net.base, x, UniformRoute(1), 'fp32')
        assert made == [1] * 2 * len(layers)
    assert not torch.allclose(before, after)
    assert_near(after, reference(net, x, UniformRoute(1)))


def test_values_are_stored_as_they_are_computed_with():
    net = IMAGE_CASES['SwinIR pixelshuffle'].net()
    layers = LevelLayers('bf16', pytest.fail, pytest.fail)
    for layer in prunable_layers(net.base).values():
        made = layers.at(layer, 0)
        assert made.weight.dtype == made.bias.dtype == torch.bfloat16
        assert torch.equal(made.weight, layer.level_values(0)[0].bfloat16())
        assert made.weight.dim() == 2 or made.weight.is_contiguous(memory_format=torch.channels_last)
        assert layers.at(layer, 0) is made


def test_compiled_networks_run_whole_images_and_count_alike(monkeypatch):
    monkeypatch.setenv('CP_ENGINE', 'compile')
    compiled = []
    compile_network = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda net: compiled.append(net) or compile_network(net, backend='eager'))
    net, x = IMAGE_CASES['ECBSR'].net(), IMAGE_CASES['ECBSR'].input(2)
    accelerator = Accelerator(lambda _: None)
    for _ in range(2):
        expected, found = UniformRoute(-2), UniformRoute(-2)
        with torch.no_grad():
            output = accelerator.run(net.base, x, found, 'fp32')
        assert_near(output, reference(net, x, expected))
        assert found.positions == expected.positions
    assert len(compiled) == 1
    assert not any(isinstance(module, PrunableLayer) for module in compiled[0].modules())
    with torch.no_grad():
        accelerator.run(net.base, x, random_map(x), 'fp32')
    assert len(compiled) == 1


def test_what_cannot_be_compiled_runs_layer_by_layer(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    class Broken(nn.Module):
        def forward(self, x):
            raise BackendCompilerFailed(self.forward, RuntimeError('no Triton'), None)

    monkeypatch.setenv('CP_ENGINE', 'compile')
    monkeypatch.setattr(torch, 'compile', lambda net: Broken())
    net, x, told = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input(), []
    accelerator = Accelerator(told.append)
    for _ in range(2):
        route = UniformRoute(0)
        with torch.no_grad():
            output = accelerator.run(net.base, x, route, 'fp32')
        assert_near(output, reference(net, x, UniformRoute(0)))
    assert [sentence for sentence in told if 'torch.compile failed' in sentence] == [told[1]]


def test_the_engine_hands_a_gpu_s_work_to_the_accelerator(monkeypatch, log):
    monkeypatch.setattr(network_engine, 'DEVICES', ('cpu',))
    monkeypatch.setenv('CP_ENGINE', '')
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input()
    with torch.no_grad():
        for _ in range(2):
            assert_near(net(x, level=0), reference(net, x, UniformRoute(0)))
    (entry,) = log
    assert entry.startswith(
        f'INFO Engine: {len(prunable_layers(net.base))} prunable layers run on cpu in fp32, channels'
    )
    net = copy.deepcopy(net)
    for wanted, reason in (('reference', 'CP_ENGINE=reference.'), ('avx2', 'avx2 is none of reference, compile')):
        monkeypatch.setenv('CP_ENGINE', wanted)
        with torch.no_grad():
            assert torch.equal(net(x, level=0), reference(net, x, UniformRoute(0)))
        assert log[-1].startswith('INFO Layers run on the masked reference path: ') and reason in log[-1]


def test_with_gradients_nothing_is_cut_off(monkeypatch):
    monkeypatch.setattr(network_engine, 'DEVICES', ('cpu',))
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input()
    net.engine.run(net.base, x, UniformRoute(0)).sum().backward()
    assert all(layer.weight.grad is not None for layer in prunable_layers(net.base).values())
