"""The command that says how many weights each layer should keep, as it is run, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.archs import build_network
from training import SRVGG, training_options, user_options

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.sparsity import prunable_layers
from cp_basicsr.tools.allocate import main

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """A training option file's content; its checkpoint is one of the base network."""
    torch.manual_seed(0)
    found = user_options(tmp_path)
    found['network_g']['sparsity'] = {'m': 8, 'levels': [2, 4, 8], 'weights': 'per_level'}
    found['path']['pretrain_network_g'] = str(tmp_path / 'base.pth')
    torch.save({'params': build_network(dict(SRVGG)).state_dict()}, tmp_path / 'base.pth')
    return found


def written(options: dict[str, Any], folder: Path) -> Path:
    path = folder / 'train.yml'
    path.write_text(yaml.safe_dump(options))
    return path


def test_what_it_prints_can_be_trained_and_costs_no_more(options, tmp_path, capsys) -> None:
    main(['-opt', str(written(options, tmp_path))])
    found = yaml.safe_load(capsys.readouterr().out)
    blocks = {key: value for key, value in options['network_g'].items() if key != 'type'}
    uniform = ClassPruningNet(**copy.deepcopy(blocks))
    assert found['layer_levels'].keys() == prunable_layers(uniform.base).keys()
    blocks['sparsity'] |= found
    own = ClassPruningNet(**copy.deepcopy(blocks))
    assert (own.costs((3, 16, 16)) <= uniform.costs((3, 16, 16))).all()
    # Levels that the file has already make no difference.
    main(['-opt', str(written(options | {'network_g': {'type': 'ClassPruningNet', **blocks}}, tmp_path))])
    assert yaml.safe_load(capsys.readouterr().out) == found


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda options: options['path'].update(pretrain_network_g=None), r'path\.pretrain_network_g is missing'),
        (lambda options: options['path'].update(pretrain_network_g='no.pth'), r'no\.pth'),
        (lambda options: options['train'].pop('calibration'), r'train\.calibration\.dataset is missing'),
        (lambda options: options['network_g'].update(type='EDSR'), r'network_g\.type is not ClassPruningNet'),
        (lambda options: options['network_g']['sparsity'].update(levels=[4, 2, 8]), r'go from sparse to dense'),
    ],
)
def test_what_cannot_be_measured_says_why(change, message, options, tmp_path) -> None:
    change(options)
    with pytest.raises(SystemExit, match=message):
        main(['-opt', str(written(options, tmp_path))])


def test_a_training_run_with_layer_levels_starts_trains_and_saves_them(options, tmp_path) -> None:
    import training

    built = training_options(tmp_path, iters=2)
    built['network_g'] = options['network_g']
    built['network_g']['sparsity']['layer_levels'] = {'body.2': [1, 5, 8]}
    built['path']['pretrain_network_g'] = options['path']['pretrain_network_g']
    built['train']['stages'] = [
        {'name': 'supernet', 'iters': 2, 'optim_g': {'type': 'WhitenedAdam', 'lr': 1e-4}},
        {'name': 'classifier', 'iters': 2},
    ]
    built['train']['total_iter'] = 4
    model = training.build(built)
    training.train(model, 1, 4)
    kept = prunable_layers(model.net.base)['body.2'].mask(1).float().mean()
    assert kept == 5 / 8
