import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from cp_basicsr.sparsity import (
    NMConv2d,
    NMConv3d,
    NMLinear,
    NMPattern,
    PatternError,
    UniformRoute,
    convert,
    prunable_layers,
    refresh_ranks,
    routed,
)

PATTERN = NMPattern(4, [1, 2, 4])


class ScaledConv2d(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def small():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        nn.Conv3d(8, 8, 1),
        nn.Linear(9, 2),
    )


def test_suitable_layers_change_class_in_place_and_keep_their_parameters():
    net = small()
    modules, parameters = dict(net.named_modules()), dict(net.named_parameters())
    report = convert(net, PATTERN)
    assert report.prunable == ['0.2', '1', '2']
    assert report.left_dense == {'0.0': '3 input channels are fewer than m = 4'}
    assert all(net.get_submodule(name) is module for name, module in modules.items())
    assert {name: id(value) for name, value in net.named_parameters()} == {k: id(v) for k, v in parameters.items()}
    assert [type(net.get_submodule(name)) for name in report.prunable] == [NMConv2d, NMConv3d, NMLinear]
    assert list(prunable_layers(net)) == report.prunable
    assert 'kernel_size=(3, 3)' in repr(net[0][2]), 'it prints as the layer it was'


def test_hooks_of_a_layer_stay():
    net, seen = small(), []
    net[2].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    convert(net, PATTERN)
    net[2](torch.zeros(1, 9))
    assert seen == [(1, 2)]


@pytest.mark.parametrize(
    ('make', 'reason'),
    [
        (lambda: spectral_norm(nn.Conv2d(8, 8, 3)), 'its weight is computed'),
        (lambda: spectral_norm(nn.Linear(8, 8)), 'its weight is computed'),
        (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), 'not a plain'),
        (lambda: nn.Conv2d(8, 8, 3, groups=2), 'groups=2'),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), 'groups=8'),
        (lambda: nn.Conv2d(8, 8, 3).requires_grad_(False), 'requires_grad=False'),
        (lambda: ScaledConv2d(8, 8, 3), 'ScaledConv2d is not a plain'),
        (lambda: nn.ConvTranspose2d(8, 8, 3), 'ConvTranspose2d is not a plain'),
        (lambda: nn.Conv1d(8, 8, 3), 'Conv1d is not a plain'),
        (lambda: nn.Linear(3, 8), '3 input channels are fewer than m = 4'),
    ],
)
def test_other_layers_stay_dense_and_the_report_says_why(make, reason):
    net = nn.Sequential(nn.Linear(4, 4), make())
    kind = type(net[1])
    report = convert(net, PATTERN)
    assert report.prunable == ['0']
    assert reason in report.left_dense['1']
    assert type(net[1]) is kind


def test_a_subclass_computes_as_before():
    torch.manual_seed(0)
    net, x = nn.Sequential(ScaledConv2d(8, 8, 1), nn.Conv2d(8, 1, 1)), torch.randn(1, 8, 2, 2)
    plain = net[0](x)
    convert(net, PATTERN)
    with routed(UniformRoute(0)):
        assert torch.equal(net[0](x), plain)


@pytest.mark.parametrize(
    ('exclude', 'prunable'),
    [
        (['0'], ['1', '2']),
        (['0.2'], ['1', '2']),
        (['0.*'], ['1', '2']),
        (['[12]'], ['0.2']),
        (['1', '2'], ['0.2']),
        ((), ['0.2', '1', '2']),
    ],
)
def test_excluded_layers_and_containers_stay_dense(exclude, prunable):
    net = small()
    report = convert(net, PATTERN, exclude)
    assert report.prunable == prunable
    assert all(report.left_dense[name] == 'excluded' for name in {'0.2', '1', '2'} - set(prunable))


def test_a_container_pattern_does_not_reach_names_that_only_begin_alike():
    net = nn.ModuleDict({'conv': nn.Linear(4, 4), 'conv_first': nn.Linear(4, 4)})
    assert convert(net, PATTERN, ['conv']).prunable == ['conv_first']


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names():
    net = nn.ModuleDict({'conv_first': nn.Linear(4, 4), 'body': nn.Linear(4, 4)})
    with pytest.raises(PatternError, match=r"sparsity\.exclude pattern 'conv_frist' matches no module.*conv_first"):
        convert(net, PATTERN, ['body', 'conv_frist'])
    assert type(net['body']) is nn.Linear, 'nothing was changed'
    with pytest.raises(PatternError, match=r"exclude is 'conv_first'; write a list"):
        convert(net, PATTERN, 'conv_first')


def test_a_network_without_prunable_layers_is_an_error_that_says_why():
    with pytest.raises(PatternError, match=r'no layer that N:M sparsity with m = 4 could prune \(0: 3 input channels'):
        convert(nn.Sequential(nn.Conv2d(3, 8, 3)), PATTERN)
    with pytest.raises(PatternError, match='excluded'):
        convert(nn.Sequential(nn.Linear(4, 4)), PATTERN, ['0'])
    with pytest.raises(PatternError, match='no layers'):
        convert(nn.ReLU(), PATTERN)


def test_weights_must_be_shared_or_per_level():
    with pytest.raises(PatternError, match=r"network_g\.sparsity\.weights is 'own'; allowed: 'shared', 'per_level'"):
        convert(small(), PATTERN, weights='own')


def test_refreshing_tells_the_share_of_changed_ranks():
    net = nn.Sequential(nn.Linear(4, 1), nn.Linear(4, 3))
    convert(net, PATTERN)
    assert refresh_ranks(net) == 0
    with torch.no_grad():
        order = net[0].weight.abs().argsort(dim=1, descending=True)
        net[0].weight.copy_(torch.arange(4.0)[order.argsort(dim=1)])
    assert refresh_ranks(net) == 4 / 16
