"""Networks built from their checkpoints alone, and the checkpoints that cannot be."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import IMAGE_CASES
from training import SRVGG, network_options

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.state import DESCRIPTION, FORMAT, CheckpointError
from cp_basicsr.loading import load_network
from cp_basicsr.sparsity import prunable_layers

pytestmark = pytest.mark.usefixtures('one_thread', 'reference_path')


def build(options: dict[str, Any]) -> ClassPruningNet:
    torch.manual_seed(0)
    return ClassPruningNet(**{key: copy.deepcopy(value) for key, value in options.items() if key != 'type'}).eval()


def redescribed(net: ClassPruningNet, **changes: Any) -> dict[str, torch.Tensor]:
    """The state of a network with another description; None drops a key."""
    state = dict(net.state_dict())
    found = json.loads(bytes(state[DESCRIPTION].tolist())) | changes
    found = {key: value for key, value in found.items() if value is not None}
    state[DESCRIPTION] = torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)
    return state


@pytest.mark.parametrize('name', IMAGE_CASES)
def test_every_architecture_is_built_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    net, x = IMAGE_CASES[name].net(), IMAGE_CASES[name].input()
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    loaded = load_network(tmp_path / 'net.pth')
    assert loaded.scale == IMAGE_CASES[name].scale and loaded.in_channels == IMAGE_CASES[name].shape[0]
    with torch.no_grad():
        for level in range(3):
            assert torch.equal(loaded(x, level=level), net(x, level=level))


@pytest.mark.parametrize(
    'options',
    [
        network_options(weights='per_level'),
        network_options(exclude=['body.0', 'body.4']),
        network_options(m=8, levels=[2, 8]),
        network_options(layer_levels={'body.2': [2, 3, 4]}),
        network_options() | {'classifier': {'type': 'DifficultyClassifier', 'num_feat': 12}},
        network_options() | {'classifier': {'type': 'TimmDifficultyClassifier', 'model_name': 'test_resnet'}},
    ],
    ids=['per level', 'exclude', 'm 8', 'layer levels', 'classifier width', 'timm'],
)
def test_all_options_are_in_the_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    net = build(options)
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    loaded = load_network(tmp_path / 'net.pth')
    assert not loaded.training and loaded.levels == net.levels and loaded.weights == net.weights
    assert [layer.pattern.levels for layer in prunable_layers(loaded.base).values()] == [
        layer.pattern.levels for layer in prunable_layers(net.base).values()
    ]
    assert loaded.conversion.prunable == net.conversion.prunable
    assert type(loaded.classifier) is type(net.classifier)
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].nan_to_num(7), value.nan_to_num(7)), name


def test_the_average_is_taken_where_there_is_one(tmp_path: Path) -> None:
    net, average = build(network_options()), build(network_options())
    with torch.no_grad():
        average.base.body[0].weight.mul_(2)
    torch.save({'params': net.state_dict(), 'params_ema': average.state_dict()}, tmp_path / 'net.pth')
    assert torch.equal(load_network(tmp_path / 'net.pth').base.body[0].weight, average.base.body[0].weight)
    assert torch.equal(load_network(tmp_path / 'net.pth', 'params').base.body[0].weight, net.base.body[0].weight)


def test_files_that_parts_were_started_from_are_not_needed_again(tmp_path: Path) -> None:
    """A classifier's checkpoint lies on another machine by now."""
    timm = {'type': 'TimmDifficultyClassifier', 'model_name': 'test_resnet'}
    net = build(network_options() | {'classifier': timm})
    torch.save(net.classifier.net.state_dict(), tmp_path / 'start.pth')
    started = build(network_options() | {'classifier': timm | {'checkpoint': str(tmp_path / 'start.pth')}})
    torch.save(started.state_dict(), tmp_path / 'net.pth')
    (tmp_path / 'start.pth').unlink()
    assert load_network(tmp_path / 'net.pth').levels == (1, 2, 4)


def test_checkpoints_of_format_1_load_where_the_network_is_known(tmp_path: Path) -> None:
    net = build(network_options())
    changes = dict.fromkeys(('sparsity', 'classifier_options', 'in_channels', 'scale'))
    old = redescribed(net, format=1, **changes)
    other = build(network_options())
    with torch.no_grad():
        other.base.body[0].weight.zero_()
    other.load_state_dict(old)
    assert torch.equal(other.base.body[0].weight, net.base.body[0].weight)
    torch.save(old, tmp_path / 'old.pth')
    with pytest.raises(CheckpointError, match=r'old\.pth: It has format 1, .* with its option file .* save it again'):
        load_network(tmp_path / 'old.pth')


def test_what_cannot_be_built_says_why(tmp_path: Path) -> None:
    net = build(network_options())
    torch.save(redescribed(net, format=FORMAT + 1), tmp_path / 'later.pth')
    with pytest.raises(CheckpointError, match=rf'later\.pth: It has format {FORMAT + 1}, .* Update cp_basicsr'):
        load_network(tmp_path / 'later.pth')
    torch.save(redescribed(net, base=SRVGG | {'type': 'NoSuchNet'}), tmp_path / 'foreign.pth')
    with pytest.raises(CheckpointError, match=r"foreign\.pth: network_g\.base\.type is 'NoSuchNet'"):
        load_network(tmp_path / 'foreign.pth')
    torch.save({'params': net.bake(-1).state_dict()}, tmp_path / 'plain.pth')
    with pytest.raises(CheckpointError, match=r'plain\.pth is a plain checkpoint .* path\.pretrain_network_g'):
        load_network(tmp_path / 'plain.pth')
    with pytest.raises(CheckpointError, match=r"'absent\.pth' is neither a file"):
        load_network('absent.pth')
