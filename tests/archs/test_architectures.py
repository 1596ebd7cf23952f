"""Every architecture: build, convert, forward at every level, backward, save, strict reload, bake.

In PyTorch, where equality is bit for bit; tests/engine/test_networks.py compares the same networks in compiled code.
"""

import functools
import io

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.ecbsr_arch import ECB
from basicsr.utils.registry import ARCH_REGISTRY
from networks import CLASSIFIER, IMAGE_CASES, SPARSITY, WHOLE_CASES, Case, Registered
from references import assert_pattern_holds

from cp_basicsr.sparsity import UniformRoute, native_state_dict, prunable_layers, routed, trace_macs, weight_ranks

pytestmark = pytest.mark.usefixtures('reference_path')
CASES = IMAGE_CASES | WHOLE_CASES
# Videos take long; whether weights are shared makes no difference to them that DUF does not show.
SLOW = [name for name in WHOLE_CASES if name != 'DUF']
KINDS = [(name, 'shared') for name in CASES] + [(name, 'per_level') for name in [*IMAGE_CASES, 'DUF']]


@pytest.fixture(params=KINDS, ids=' '.join)
def kind(request):
    name, weights = request.param
    if CASES[name].needs_deform:
        request.getfixturevalue('deform_conv')
    return name, weights


@functools.cache
def built(name, weights):
    """A network and its output at every level (slow ones at two); tests leave both as they are."""
    net, levels = CASES[name].net(weights=weights), (0, 2) if name in SLOW else (0, 1, 2)
    with torch.no_grad():
        return net, {level: net(CASES[name].input(), level=level) for level in levels}


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def baked_weight(module):
    return module.rep_params()[0] if isinstance(module, ECB) else module.weight


def test_the_densest_level_is_the_base_network_bit_for_bit_and_the_others_are_not(kind):
    case, (net, outputs) = CASES[kind[0]], built(*kind)
    plain = build_network(dict(case.base)).eval()
    plain.load_state_dict({key: net.base.state_dict()[key] for key in native_state_dict(net.base)}, strict=True)
    x = case.input()
    with torch.no_grad():
        assert torch.equal(outputs[2], plain(x))
    height, width = x.shape[-2:]
    for level, output in outputs.items():
        assert output.shape[-2:] == (height * case.scale, width * case.scale)
        assert level == 2 or not torch.equal(output, outputs[2])


@pytest.mark.parametrize('name', [*IMAGE_CASES, 'DUF', 'TOFlow', 'EDVR'])
def test_macs_rise_with_the_level_to_those_of_the_base_network(name, request):
    if CASES[name].needs_deform:
        request.getfixturevalue('deform_conv')
    case, net = CASES[name], CASES[name].net()
    spent = [net.macs(case.shape).level(k) for k in range(3)]
    assert 0 < spent[0] < spent[1] < spent[2]
    plain = trace_macs(build_network(dict(case.base)).eval(), (1, *case.shape)).dense
    if case.base['type'] == 'EDVR':
        # Deformable convolutions of 5 frames, 3 x 3 of 8 channels, on maps of 8 x 8 (two), 4 x 4 and 2 x 2.
        assert spent[2] == plain + 5 * (64 + 64 + 16 + 4) * 9 * 8 * 8
    elif case.base['type'] == 'ECBSR':
        assert spent[2] < plain, 'merging the branches of a block, once for all pixels, is no MAC of the image'
    else:
        assert spent[2] == plain
    assert net.costs(case.shape).tolist() == [share / spent[2] for share in spent]


def test_gradients_reach_what_learns(kind):
    name, weights = kind
    net = CASES[name].net(weights=weights)
    route = UniformRoute(0)
    with routed(route):
        net.base(CASES[name].input()).square().mean().backward()
    for layer in prunable_layers(net.base).values():
        base = layer.conv3x3.weight if isinstance(layer, ECB) else layer.weight
        if layer.layer_name not in route.positions:
            continue  # never used by this architecture
        if name == 'BasicVSRPlusPlus' and layer.layer_name.startswith('spynet.'):
            continue  # its flows steer the deformable alignment, which BasicSR leaves out without CUDA
        if weights == 'shared':
            assert base.grad is not None, layer.layer_name
        else:
            assert base.grad is None, 'the base network keeps its own values'
            assert layer.level_weights[0].grad is not None, layer.layer_name
            assert layer.level_weights[1].grad is None


def test_a_saved_network_reloads_strictly_with_its_ranks_and_a_plain_one_without(kind):
    name, weights = kind
    net = CASES[name].net(weights=weights)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    again = CASES[name].net(weights=weights)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    same(dict(again.state_dict()), dict(net.state_dict()))

    plain = build_network(dict(CASES[name].base))
    again.load_state_dict(plain.state_dict(), strict=True)
    for key, value in plain.state_dict().items():
        same(again.base.state_dict()[key], value)
    for layer in prunable_layers(again.base).values():
        assert torch.equal(layer.ranks, weight_ranks(layer.dense_values()[0], 4))


def test_a_baked_level_is_a_plain_network_that_holds_the_pattern_and_computes_the_same(kind):
    net, outputs = built(*kind)
    for level in (0,) if kind[0] in SLOW else (0, 1, 2):
        n, plain = net.levels[level], net.bake(level)
        assert plain.state_dict().keys() == native_state_dict(net.base).keys()
        assert not prunable_layers(plain) and not plain.training
        for name in net.conversion.prunable:
            module = plain.get_submodule(name)
            assert_pattern_holds(module.rep_params()[0] if isinstance(module, ECB) else module.weight, n, 4)
        with torch.no_grad():
            output = plain(CASES[kind[0]].input())
        if net.base_options['type'] == 'ECBSR' and level < 2:
            torch.testing.assert_close(output, outputs[level], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(output, outputs[level])


@pytest.mark.parametrize('name', [*IMAGE_CASES, 'DUF'])
def test_samples_of_a_batch_take_their_own_levels(name):
    (net, _), x = built(name, 'shared'), CASES[name].input(batch=3)
    with torch.no_grad():
        together = net(x, level=torch.tensor([2, 0, 2]))
        for row, level in enumerate([2, 0, 2]):
            alone = net(x[row : row + 1], level=level)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_an_architecture_registered_by_a_user():
    ARCH_REGISTRY.register(Registered)
    try:
        case = Case({'type': 'Registered'})
        net, x = case.net(exclude=['net.0']), case.input()
        assert net.conversion.prunable == ['net.2']
        assert net.in_channels == 3
        with torch.no_grad():
            assert torch.equal(net(x, level=-1), net.base(x))
            assert torch.equal(net(x, level=0), net.bake(0)(x))
            assert not torch.equal(net(x, level=0), net.base(x))
        assert net.restore(x).levels.shape == (1, 1, 1)
    finally:
        del ARCH_REGISTRY._obj_map['Registered']


def test_build_network_reads_the_block_of_an_option_file():
    options = {
        'type': 'ClassPruningNet',
        'base': IMAGE_CASES['EDSR'].base,
        'sparsity': SPARSITY,
        'classifier': CLASSIFIER,
    }
    net = build_network(options)
    assert net.levels == (1, 2, 4)
    assert net.training and net(IMAGE_CASES['EDSR'].input()).requires_grad, 'in training: the densest level'


def test_training_asks_for_several_levels_and_the_prediction_in_one_call():
    net, x = IMAGE_CASES['SwinIR pixelshuffle'].net(), IMAGE_CASES['SwinIR pixelshuffle'].input(2)
    with torch.no_grad():
        outputs, log_probs = net(x, each_level=[2, 0], predict_tile=4)
        assert list(outputs) == [2, 0]
        assert all(torch.equal(outputs[level], net(x, level=level)) for level in (0, 2))
        assert log_probs.shape == (2, 3, 2, 3)
        torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(2, 2, 3))
        assert net(x, each_level=[])[1] is None
        assert net(x, each_level=[], predict_tile=None)[1].shape == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ('name', 'multiple'),
    [
        ('SwinIR JPEG', 7), ('SwinIR pixelshuffle', 4), ('RRDBNet x1', 4), ('RRDBNet x2', 2), ('RRDBNet x4', 1),
        ('EDSR', 1), ('EDVR', 4), ('TOFlow', 16), ('DUF', 1),
    ],
)  # fmt: skip
def test_heights_and_widths_that_a_network_takes(name, multiple, request):
    if CASES[name].needs_deform:
        request.getfixturevalue('deform_conv')
    net = CASES[name].net()
    assert net.multiple == multiple
    frames = CASES[name].shape[:-2]
    with torch.no_grad():
        output = net(torch.rand(1, *frames, 2 * multiple, 3 * multiple), level=0)
        assert output.shape[-2:] == (2 * multiple * CASES[name].scale, 3 * multiple * CASES[name].scale)
        if multiple > 1:
            with pytest.raises((RuntimeError, AssertionError)):
                net(torch.rand(1, *frames, 2 * multiple, 3 * multiple + 1), level=0)
