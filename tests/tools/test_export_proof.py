"""N:M is proved from the weights that lie in a file, and a file that breaks it is refused with the place."""

import onnx
import pytest
import torch
from networks import IMAGE_CASES
from safetensors.torch import load_file, save_file

from cp_basicsr.tools.export import export, main
from cp_basicsr.tools.exporting.errors import ExportError
from cp_basicsr.tools.exporting.proof import prove

pytestmark = pytest.mark.usefixtures('one_thread')
LAYER = 'body.4'  # of a small SRVGGNetCompact: 8 inputs and outputs, 3 x 3


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    folder = tmp_path_factory.mktemp('exported')
    return {path.suffix: path for path, _ in export(net, folder, 'net', [0], ['pth', 'safetensors', 'onnx', 'pt2'])
            if 'classifier' not in path.name}  # fmt: skip


def spoilt(weight):
    """One weight more in output 5, tap (2, 1), inputs 4 to 7; returns the place as messages name it."""
    group = weight[5, 4:8, 2, 1]
    group[int((group == 0).nonzero()[0])] = 0.5
    return r'output channel 5, kernel tap \(2, 1\), input channels 4 to 7 hold 2 weights .* 1 are allowed'


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.onnx', '.pt2'])
def test_every_format_is_proved_by_what_it_says_of_itself(suffix, exported):
    proof = prove(exported[suffix])
    assert proof.layers == {
        'body.2': (1, 144, 144, 576), 'body.4': (1, 144, 144, 576), 'body.6': (1, 486, 486, 1944),
    }  # fmt: skip
    assert proof.dense == {'body.0': '3 input channels are fewer than m = 4'}


def test_a_checkpoint_with_one_weight_too_many_is_refused(exported, tmp_path):
    content = torch.load(exported['.pth'], weights_only=True)
    place = spoilt(content['params'][f'{LAYER}.weight'])
    torch.save(content, tmp_path / 'spoilt.pth')
    with pytest.raises(ExportError, match=rf'breaks 1:4 in layer {LAYER}: {place}'):
        prove(tmp_path / 'spoilt.pth')
    with pytest.raises(SystemExit, match=rf'breaks 1:4 in layer {LAYER}') as refusal:
        main(['--verify', str(tmp_path / 'spoilt.pth')])
    assert refusal.value.code not in (0, None)


def test_an_onnx_file_with_one_weight_too_many_is_refused(exported, tmp_path):
    model = onnx.load(exported['.onnx'])
    value = next(value for value in model.graph.initializer if value.name == f'{LAYER}.weight')
    weight = torch.tensor(onnx.numpy_helper.to_array(value))
    place = spoilt(weight)
    value.CopyFrom(onnx.numpy_helper.from_array(weight.numpy(), value.name))
    onnx.save(model, tmp_path / 'spoilt.onnx')
    with pytest.raises(ExportError, match=rf'breaks 1:4 in layer {LAYER}: {place}'):
        prove(tmp_path / 'spoilt.onnx')


def test_a_file_without_a_description_is_proved_by_the_pattern_given(exported, tmp_path):
    values = load_file(exported['.safetensors'])
    save_file(values, tmp_path / 'bare.safetensors')
    bare = tmp_path / 'bare.safetensors'
    with pytest.raises(ExportError, match='does not describe itself: give the pattern, for 2:4 as --n 2 --m 4'):
        prove(bare)
    assert prove(bare, m=4, n=1).layers == prove(exported['.safetensors']).layers
    with pytest.raises(ExportError, match=r'breaks 1:8 in layer body\.2'):
        prove(bare, m=8, n=1)
    assert prove(bare, m=8, n=2, exclude=['body.6']).dense == {
        'body.0': '3 input channels are fewer than m = 8', 'body.6': 'excluded',
    }  # fmt: skip
    with pytest.raises(ExportError, match='has no layer that 1:16 could hold in'):
        prove(bare, m=16, n=1)


def test_a_pattern_that_contradicts_the_file_is_refused(exported):
    with pytest.raises(ExportError, match='says that it holds 1:4, but 2:4 is to be proved'):
        prove(exported['.pth'], m=4, n=2)


def test_a_layer_that_is_missing_is_refused(exported, tmp_path):
    content = torch.load(exported['.pth'], weights_only=True)
    del content['params'][f'{LAYER}.weight']
    torch.save(content, tmp_path / 'cut.pth')
    with pytest.raises(ExportError, match=r'does not hold the SRVGGNetCompact that it describes: .*body\.4\.weight'):
        prove(tmp_path / 'cut.pth')


def test_merged_weights_are_proved_in_onnx_too(tmp_path):
    net = IMAGE_CASES['ECBSR'].net()
    checkpoint, traced, _ = [path for path, _ in export(net, tmp_path, 'net', [1], ['pth', 'onnx'])]
    found = prove(traced).layers
    assert list(found) == net.conversion.prunable
    assert found == prove(checkpoint).layers


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.onnx', '.pt2'])
def test_a_damaged_file_is_named(suffix, tmp_path):
    path = tmp_path / f'damaged{suffix}'
    path.write_bytes(b'\x08\x07damaged')
    with pytest.raises(ExportError, match=f'damaged{suffix}'):
        prove(path)


def test_a_file_of_another_exporter_may_have_nodes_without_weights(exported, tmp_path):
    model = onnx.load(exported['.onnx'])
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    model.graph.node.append(onnx.helper.make_node('Constant', [], ['more'], value_float=1.0))
    onnx.save(model, tmp_path / 'other.onnx')
    assert len(prove(tmp_path / 'other.onnx', m=4, n=1).layers) == 3


@pytest.mark.parametrize(
    ('pattern', 'message'),
    [(('2', '-4'), "argument --m: '-4'; allowed: whole"), (('2', '0'), "--m: '0'"), (('8', '4'), '8:4 is no pattern')],
)
def test_what_is_no_pattern_cannot_be_proved(pattern, message, exported, tmp_path, capsys):
    save_file(load_file(exported['.safetensors']), tmp_path / 'plain.safetensors')
    with pytest.raises(SystemExit) as refusal:
        main(['--verify', str(tmp_path / 'plain.safetensors'), '--n', pattern[0], '--m', pattern[1]])
    assert message in f'{refusal.value.code} {capsys.readouterr().err}'
