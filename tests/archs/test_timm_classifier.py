import socket

import pytest
import timm
import torch
from networks import IMAGE_CASES, SPARSITY
from safetensors.torch import save_file

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.timm_classifier_arch import TimmDifficultyClassifier
from cp_basicsr.options import OptionError
from cp_basicsr.routing.choice import RoutingChoice

SMALL = 'test_resnet.r160_in1k'  # timm's own model for tests


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError('it asked for the network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def small(**options):
    torch.manual_seed(0)
    return TimmDifficultyClassifier(3, SMALL, **options).eval()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(1, 1), (20, 50), (64, 64)])
def test_one_prediction_for_images_of_any_size(channels, size):
    logits = small(in_channels=channels)(torch.rand(2, channels, *size))
    assert logits.shape == (2, 3, 1, 1) and torch.isfinite(logits).all()


def test_a_model_of_fixed_size_gets_images_of_that_size():
    net = TimmDifficultyClassifier(2, 'test_vit.r160_in1k').eval()
    assert net.input_size == 160
    assert net(torch.rand(1, 3, 40, 70)).shape == (1, 2, 1, 1)
    assert small(input_size=48).input_size == 48


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_a_local_checkpoint_is_loaded_but_for_a_head_of_another_size(tmp_path, ending):
    torch.manual_seed(7)
    values = timm.create_model(SMALL, pretrained=False).state_dict()
    assert values['fc.weight'].shape[0] == 1000
    path = tmp_path / f'model{ending}'
    save_file(values, path) if ending == '.safetensors' else torch.save(values, path)
    net = small(checkpoint=str(path))
    own = net.net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in values.items() if not key.startswith('fc.'))
    assert own['fc.weight'].shape[0] == 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / 'vit.pth'
    torch.save(timm.create_model('test_vit.r160_in1k', pretrained=False).state_dict(), path)
    with pytest.raises(OptionError, match=r'vit\.pth does not fit ResNet'):
        small(checkpoint=str(path))


def test_a_missing_checkpoint_is_named_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(
        OptionError, match=r'network_g\.classifier\.checkpoint: no file .*none\.pth.*Nothing is downloaded'
    ):
        small(checkpoint=str(tmp_path / 'none.pth'))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(OptionError, match=r"model_name is 'resnet81'.*Did you mean 'resnet\d"):
        TimmDifficultyClassifier(3, 'resnet81')


def test_it_routes_whole_images_and_says_so_when_tiles_are_asked_for():
    base = dict(IMAGE_CASES['EDSR'].base)
    net = ClassPruningNet(base, SPARSITY, {'type': 'TimmDifficultyClassifier', 'model_name': SMALL}).eval()
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        restored = net.restore(x)
        assert restored.tile is None and restored.levels.shape == (2, 1, 1)
        assert torch.equal(net(x), restored.image)
        spent = net.macs(x.shape[1:])
        expected = sum(spent.level(int(level)) for level in restored.levels) + 2 * net.classifier_macs(
            x.shape[1:], None
        )
        assert restored.macs == expected
        with pytest.raises(OptionError, match=r'TimmDifficultyClassifier predicts whole images.*`tile: ~`'):
            net.restore(x, RoutingChoice(tile=16))
    with pytest.raises(OptionError, match=r'val\.tile\.size is 8: write `tile: ~`'):
        net.classifier(x, 8)
