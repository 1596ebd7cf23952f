"""Code and packed weights follow the network: whatever changes its values, the next image is restored with them."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from networks import IMAGE_CASES
from references import assert_near

from cp_basicsr.sparsity import UniformRoute, prunable_layers, refresh_ranks, routed

pytestmark = pytest.mark.usefixtures('compiled_code')
CASE = IMAGE_CASES['SRVGGNetCompact']


@torch.no_grad()
def check(net):
    """The network's compiled outputs at each level, which are those of PyTorch."""
    x, outputs = CASE.input(), []
    for level in range(3):
        outputs.append(net.run_level(x, level))
        with routed(UniformRoute(level)):
            assert_near(outputs[-1], net.base(x))
    return outputs


def learn(net, optimizer, **options):
    optimizer = optimizer(net.parameters(), lr=0.01, **options)
    net.train()(CASE.input(), level=0).square().mean().backward()
    optimizer.step()
    net.eval()


def double(net):
    net.base.body[2].weight.mul_(2.0)


CHANGES = {
    'SGD': lambda net: learn(net, torch.optim.SGD),
    'Adam': lambda net: learn(net, torch.optim.Adam, foreach=False),
    'Adam of many tensors at once': lambda net: learn(net, torch.optim.Adam, foreach=True),
    'fused Adam': lambda net: learn(net, torch.optim.Adam, fused=True),
    'a checkpoint': lambda net: net.load_state_dict({key: 1.1 * value if value.is_floating_point() else value
                                                     for key, value in net.state_dict().items()}),
    'a plain checkpoint': lambda net: net.load_state_dict({key: value.roll(1, 0)
                                                           for key, value in net.bake(-1).state_dict().items()}),
    'a checkpoint that is taken over': lambda net: net.load_state_dict(
        {key: value.clone() if key.endswith('ranks') or not value.is_floating_point() else 1.1 * value
         for key, value in net.state_dict().items()}, assign=True),
    'in place': torch.no_grad()(double),
    'in place in inference mode': torch.inference_mode()(double),
    'a slope': lambda net: torch.nn.init.constant_(net.base.body[1].weight, -0.5),
    'a bias': lambda net: torch.nn.init.constant_(net.base.body[2].bias, 0.5),
    'a dense layer': lambda net: torch.nn.init.constant_(net.base.body[0].weight, 0.1),
}  # fmt: skip


@pytest.mark.parametrize('change', CHANGES)
def test_after(change):
    net = CASE.net()
    before = check(net)
    CHANGES[change](net)
    after = check(net)
    assert all(not torch.allclose(old, new, rtol=1e-3, atol=1e-4) for old, new in zip(before, after, strict=True))


def test_after_new_ranks():
    net = CASE.net()
    check(net)
    layer = net.base.body[2]
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(1))
    check(net)
    assert refresh_ranks(net.base) > 0
    check(net)


def test_values_changed_behind_autograd_s_back_are_seen_by_their_norms_else_need_to_be_told():
    net = CASE.net()
    check(net)
    weight = net.base.body[2].weight.data
    weight.mul_(1.001)
    check(net)
    weight.copy_(weight.flip(2))
    net.engine.forget()
    check(net)


def test_a_network_of_nan_is_compiled_once():
    net = CASE.net()
    with torch.no_grad():
        net.base.body[2].weight[0, 0, 0, 0] = torch.nan
        net(CASE.input(), level=-1)
        compiled = net.engine.prepared.compiled
        net(CASE.input(), level=-1)
    assert net.engine.prepared.compiled is compiled


def test_unchanged_networks_are_compiled_once_whatever_the_input(monkeypatch):
    net = CASE.net()
    check(net)
    compiled = net.engine.prepared.compiled
    with torch.no_grad():
        net(torch.rand(2, 3, 9, 17), level=0)
        net(torch.rand(1, 3, 64, 64))
        net.train()(CASE.input())
        net.eval()(CASE.input())
    assert net.engine.prepared.compiled is compiled
    monkeypatch.setenv('CP_ENGINE', 'avx2')
    check(net)
    monkeypatch.setenv('CP_ENGINE', 'reference')
    check(net)


def test_inference_mode_and_no_grad_are_the_same():
    net, x = CASE.net(), CASE.input()
    with torch.inference_mode():
        first = net(x, level=0)
        compiled = net.engine.prepared.compiled
    with torch.no_grad():
        second = net(x, level=0)
    with torch.inference_mode():
        third = net(x.clone(), level=0)
    assert torch.equal(first, second) and torch.equal(first, third)
    assert net.engine.prepared.compiled is compiled
    assert first.is_inference() and not second.is_inference()


def test_a_copy_compiles_its_own():
    net = CASE.net()
    before = check(net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        double(twin)
    assert not torch.allclose(check(twin)[0], before[0], rtol=1e-3)
    assert torch.equal(check(net)[0], before[0])


def pickled(net):
    return pickle.loads(pickle.dumps(net))


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize('through', [pickled, saved])
def test_a_network_can_be_pickled_with_its_engine(through):
    net = CASE.net()
    before = check(net)
    assert torch.equal(check(through(net))[1], before[1])


def levels_of(net):
    return [level for layer in net.engine.prepared.compiled.layers.values() for level in layer._levels]


def test_networks_of_equal_patterns_share_code_which_goes_with_the_last():
    first, second = (CASE.net(m=5, levels=[1, 2, 5]) for _ in range(2))  # no other test has them
    check(first)
    with torch.no_grad():
        second.base.body[2].weight.mul_(2.0)  # other values of the same ranks
    check(second)
    assert all(a.kernel is b.kernel for a, b in zip(levels_of(first), levels_of(second), strict=True))
    kernel = weakref.ref(levels_of(first)[0].kernel)
    del first
    gc.collect()
    assert kernel() is not None
    check(second)
    del second
    gc.collect()
    assert kernel() is None


def test_level_values_of_their_own_are_packed():
    net = CASE.net(weights='per_level')
    layer = net.base.body[2]
    with torch.no_grad():
        layer.level_weights[0].mul_(-1.0)
        layer.level_biases[1].add_(1.0)
    before = check(net)
    with torch.no_grad():
        layer.level_weights[0].mul_(0.5)
    after = check(net)
    assert not torch.allclose(before[0], after[0], rtol=1e-3)
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])


def test_edsr_baseline_with_three_levels_takes_less_than_200_megabytes():
    from cp_basicsr.archs.class_pruning_arch import ClassPruningNet

    torch.manual_seed(0)
    base = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 16, 'upscale': 4}
    net = ClassPruningNet(base, {'m': 4, 'levels': [1, 2, 4]}).eval()
    with torch.no_grad():
        net.run_level(torch.rand(1, 3, 8, 8), 0)
    assert len(net.engine.prepared.compiled.layers) >= len(prunable_layers(net.base)) == 36
    assert net.engine.prepared.compiled.code_size < 200e6
