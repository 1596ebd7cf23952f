"""Everything that can be wrong with network_g, its checkpoint or its input gets an error that says what to do."""

import pytest
import torch
import torchvision
from basicsr.archs import build_network
from networks import CLASSIFIER, IMAGE_CASES, SPARSITY, WHOLE_CASES

from cp_basicsr.archs.adapters import REFUSED
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.options import OptionError
from cp_basicsr.sparsity import PatternError

EDSR = dict(IMAGE_CASES['EDSR'].base)


@pytest.mark.parametrize(
    ('base', 'sparsity', 'classifier', 'told'),
    [
        (EDSR, {**SPARSITY, 'level': [1]}, CLASSIFIER, r"Unknown key 'level' in network_g\.sparsity.*mean 'levels'"),
        (EDSR, {'levels': [1, 4]}, CLASSIFIER, r'network_g\.sparsity\.m is missing'),
        (EDSR, {'m': 4}, CLASSIFIER, r'network_g\.sparsity\.levels is missing'),
        (EDSR, None, CLASSIFIER, r'network_g\.sparsity\.m is missing'),
        (EDSR, [1, 2], CLASSIFIER, r'network_g\.sparsity is \[1, 2\]; write a block'),
        (EDSR, SPARSITY | {'levels': [124]}, CLASSIFIER, r'levels holds 124.*base-60'),
        (
            EDSR,
            SPARSITY | {'exclude': ['conv_frist']},
            CLASSIFIER,
            r"exclude pattern 'conv_frist'.*nearest: conv_first",
        ),
        (EDSR, SPARSITY | {'exclude': 'body'}, CLASSIFIER, r"exclude is 'body'; write a list"),
        (EDSR, SPARSITY | {'weights': 'per-level'}, CLASSIFIER, r"weights is 'per-level'; allowed"),
        (
            EDSR,
            SPARSITY | {'m': 64, 'levels': [1, 64]},
            CLASSIFIER,
            'no layer that N:M sparsity with m = 64 could prune',
        ),
        (EDSR, SPARSITY, CLASSIFIER | {'num_feats': 8}, r"'num_feats' in network_g\.classifier.*mean 'num_feat'"),
        (EDSR, SPARSITY, {'type': 'DificultyClassifier'}, r"classifier\.type is 'DificultyClassifier'.*Difficulty"),
        (EDSR, SPARSITY, {'type': 'EDSR'}, r'network_g\.classifier\.type EDSR is no classifier'),
        (EDSR, SPARSITY, 'DifficultyClassifier', r"network_g\.classifier is 'DifficultyClassifier'; write a block"),
        (
            {**EDSR, 'type': 'EDSSR'},
            SPARSITY,
            CLASSIFIER,
            r"base\.type is 'EDSSR', which is not registered\. Did .*'EDSR'",
        ),
        ({'num_feat': 8}, SPARSITY, CLASSIFIER, r'network_g\.base\.type is None'),
        (None, SPARSITY, CLASSIFIER, r'network_g\.base is None; write a block'),
        ('EDSR', SPARSITY, CLASSIFIER, r"network_g\.base is 'EDSR'; write a block"),
        (
            {**EDSR, 'num_feats': 8},
            SPARSITY,
            CLASSIFIER,
            r'network_g\.base \(EDSR\): .*num_feats.*options are: .*num_feat',
        ),
        ({'type': 'EDSR'}, SPARSITY, CLASSIFIER, r"network_g\.base \(EDSR\): missing a required argument: 'num_in_ch'"),
    ],
)
def test_options_of_the_network(base, sparsity, classifier, told):
    with pytest.raises((OptionError, PatternError), match=told):
        ClassPruningNet(base, sparsity, classifier)


def test_a_block_of_the_network_that_does_not_exist():
    with pytest.raises(OptionError, match=r"Unknown key 'sparsty' in network_g\..*mean 'sparsity'"):
        build_network({'type': 'ClassPruningNet', 'base': EDSR, 'sparsity': SPARSITY, 'sparsty': SPARSITY})


@pytest.mark.parametrize('name', REFUSED)
def test_architectures_that_are_no_image_to_image_networks_are_refused_with_the_reason(name):
    with pytest.raises(
        OptionError, match=rf'network_g\.base\.type {name} cannot become a ClassPruning network: {REFUSED[name]}'
    ):
        ClassPruningNet({'type': name}, SPARSITY, CLASSIFIER)


def test_a_class_that_basicsr_registers_with_a_suffix_goes_by_both_names():
    for name in ('SRVGGNetCompact', 'SRVGGNetCompact_basicsr'):
        net = ClassPruningNet({**IMAGE_CASES['SRVGGNetCompact'].base, 'type': name}, SPARSITY, CLASSIFIER)
        assert type(net.base).__name__ == 'SRVGGNetCompact'
    with pytest.raises(OptionError, match='it is a discriminator'):
        ClassPruningNet({'type': 'UNetDiscriminatorSN_basicsr'}, SPARSITY, CLASSIFIER)


@pytest.mark.parametrize('name', ['EDVR', 'IconVSR', 'BasicVSRPlusPlus'])
def test_an_architecture_whose_compiled_operator_is_missing_is_refused(name, monkeypatch):
    monkeypatch.setattr(torchvision.extension, '_has_ops', lambda: False)
    base = dict(WHOLE_CASES[name].base)
    if name == 'BasicVSRPlusPlus':  # without CUDA it leaves its deformable convolutions out
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        base['mid_channels'] = 16
    with pytest.raises(OptionError, match=rf'{name} needs the compiled operator torchvision\.ops\.deform_conv2d'):
        ClassPruningNet(base, SPARSITY, CLASSIFIER)


def test_recomputing_blocks_in_the_backward_pass_is_refused():
    with pytest.raises(OptionError, match=r'network_g\.base\.use_checkpoint of SwinIR is true.*use_checkpoint: false'):
        ClassPruningNet({**IMAGE_CASES['SwinIR JPEG'].base, 'use_checkpoint': True}, SPARSITY, CLASSIFIER)


@pytest.mark.parametrize(
    ('shape', 'told'),
    [
        ((1, 1, 8, 8), r'has 1 channel\(s\), but EDSR was built for 3'),
        ((1, 4, 8, 8), r'has 4 channel\(s\)'),
        ((3, 8, 8), r'shape \(3, 8, 8\); allowed: \[B, C, H, W\]'),
    ],
)
def test_inputs(shape, told):
    net = IMAGE_CASES['EDSR'].net()
    for run in (lambda x: net(x), lambda x: net(x, level=0), net.restore):
        with pytest.raises(OptionError, match=told):
            run(torch.zeros(shape))


def test_colour_for_a_gray_network():
    with pytest.raises(OptionError, match=r'has 3 channel\(s\), but SRVGGNetCompact was built for 1'):
        IMAGE_CASES['SRVGGNetCompact gray x1'].net()(torch.zeros(1, 3, 8, 8))


def test_levels_that_do_not_exist():
    net, x = IMAGE_CASES['EDSR'].net(), torch.zeros(2, 3, 8, 8)
    for level in (3, -4, True, torch.tensor([0, 3])):
        with pytest.raises(PatternError, match=r'level .* does not exist'):
            net(x, level=level)
    with pytest.raises(OptionError, match=r'level has shape \(3,\) for a batch of 2'):
        net(x, level=torch.tensor([0, 1, 2]))
    with pytest.raises(PatternError, match='does not exist'):
        net.bake(3)


OTHERS = {
    'architecture': (lambda: IMAGE_CASES['MSRResNet'].net(), r'another network_g\.base\.type: MSRResNet.* has EDSR'),
    'group length': (lambda: IMAGE_CASES['EDSR'].net(m=8, levels=[1, 8]), r'another network_g\.sparsity\.m: 8.* has 4'),
    'levels': (lambda: IMAGE_CASES['EDSR'].net(levels=[2, 4]), r'another network_g\.sparsity\.levels: \[2, 4\]'),
    "one layer's levels": (
        lambda: IMAGE_CASES['EDSR'].net(layer_levels={'conv_last': [1, 3, 4]}),
        r"layer_levels: \{'conv_last': \[1, 3, 4\]\}, the option file has \{\}",
    ),
    'sharing': (lambda: IMAGE_CASES['EDSR'].net(weights='per_level'), r'sparsity\.weights: per_level.* has shared'),
    'excluded layers': (lambda: IMAGE_CASES['EDSR'].net(exclude=['conv_last']), r'network_g\.sparsity\.exclude'),
}


@pytest.mark.parametrize('other', OTHERS)
def test_a_checkpoint_of_another_network(other):
    make, told = OTHERS[other]
    net = IMAGE_CASES['EDSR'].net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=told):
        net.load_state_dict(make().state_dict(), strict=True)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_a_plain_checkpoint_of_another_network():
    net = IMAGE_CASES['EDSR'].net()
    with pytest.raises(CheckpointError, match=r'does not fit EDSR as network_g\.base describes it.*unknown: '):
        net.load_state_dict(build_network(dict(IMAGE_CASES['MSRResNet'].base)).state_dict())
    wider = build_network({**EDSR, 'num_feat': 12}).state_dict()
    with pytest.raises(CheckpointError, match=r'other shapes: .*\(12, .* instead of \(8, '):
        net.load_state_dict(wider)
