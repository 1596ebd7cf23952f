"""Exported levels: plain networks under native names, and traced ones, that compute what the level computes."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from basicsr.archs import build_network
from networks import CLASSIFIER, IMAGE_CASES, SPARSITY, WHOLE_CASES
from references import assert_pattern_holds
from safetensors.torch import load_file
from spandrel import ImageModelDescriptor, ModelLoader

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.examples import EXAMPLES
from cp_basicsr.archs.tracing import make_traceable
from cp_basicsr.sparsity import PatternError
from cp_basicsr.tools.export import export, main
from cp_basicsr.tools.exporting import traced
from cp_basicsr.tools.exporting.errors import ExportError
from cp_basicsr.tools.exporting.proof import prove

pytestmark = pytest.mark.usefixtures('one_thread', 'reference_path')


def written(net, folder, levels=(0,), formats=('pth', 'safetensors')):
    return [path for path, _ in export(net, folder, 'net', levels, formats)]


def at_level(net, x, level):
    with torch.no_grad():
        return net(x, level=level)


@pytest.fixture
def checkpoint(tmp_path):
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    torch.save({'params': net.state_dict()}, tmp_path / 'small.pth')
    return net, tmp_path / 'small.pth'


@pytest.mark.parametrize(
    ('name', 'weights'),
    [('SRVGGNetCompact', 'shared'), ('SRVGGNetCompact', 'per_level'), ('ECBSR with identity', 'shared'),
     ('SwinIR pixelshuffle', 'shared'), ('RCAN', 'shared')],
)  # fmt: skip
def test_a_level_loads_strictly_in_basicsr_and_computes_the_same(name, weights, tmp_path):
    case, net = IMAGE_CASES[name], IMAGE_CASES[name].net(weights=weights)
    for level in (0, 1):
        with torch.no_grad():  # so that levels with values of their own differ by more than their masks
            for layer_values in (layer for layer in net.parameters() if layer.dim() > 1):
                layer_values.mul_(1 + 0.1 * level)
        pth, safetensors = written(net, tmp_path, [level])
        assert [path.name for path in (pth, safetensors)] == [
            f'net_{net.levels[level]}of4.pth', f'net_{net.levels[level]}of4.safetensors'
        ]  # fmt: skip
        for values in (torch.load(pth, weights_only=True)['params'], load_file(safetensors)):
            plain = build_network(dict(case.base)).eval()
            plain.load_state_dict(values, strict=True)
            x = case.input()
            with torch.no_grad():
                torch.testing.assert_close(plain(x), at_level(net, x, level), rtol=1e-5, atol=1e-6)
    if name.startswith('SRVGG'):
        assert_pattern_holds(values['body.2.weight'], 2, 4)
        assert int((values['body.2.weight'] == 0).sum()) == values['body.2.weight'].numel() // 2


@pytest.mark.parametrize('name', ['SRVGGNetCompact', 'SwinIR', 'RRDBNet'])
def test_spandrel_loads_both_kinds_of_checkpoint_and_computes_the_same(name, tmp_path):
    torch.manual_seed(0)
    net = ClassPruningNet(dict(EXAMPLES[name].base), SPARSITY, dict(CLASSIFIER)).eval()
    x = torch.rand(1, 3, 16, 24)
    for path in written(net, tmp_path):
        model = ModelLoader().load_from_file(path).eval()
        assert isinstance(model, ImageModelDescriptor) and model.scale == net.scale == EXAMPLES[name].scale
        with torch.no_grad():
            torch.testing.assert_close(model.model(x), at_level(net, x, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['SRVGGNetCompact', 'SwinIR gray denoising'])
def test_onnx_takes_any_size_and_says_what_it_holds(name, tmp_path):
    case, net = IMAGE_CASES[name], IMAGE_CASES[name].net()
    checkpoint, level, classifier = written(net, tmp_path, [1], ['pth', 'onnx'])
    proof = prove(level)  # weights of a Linear are transposed in ONNX
    assert list(proof.layers) == net.conversion.prunable and proof.layers == prove(checkpoint).layers
    session = onnxruntime.InferenceSession(level, providers=['CPUExecutionProvider'])
    assert session.get_inputs()[0].shape == [1, case.shape[0], 'height', 'width']
    described = json.loads(session.get_modelmeta().custom_metadata_map['class_pruning'])
    assert described['base'] == net.base_options and set(described['pruned'].values()) == {2}
    for size in ((4, 8), (20, 12), (8, 8)):  # the last is what SwinIR was built for
        x = torch.rand(1, case.shape[0], *size)
        found = session.run(['output'], {'lq': x.numpy()})[0]
        np.testing.assert_allclose(found, at_level(net, x, 1), rtol=0, atol=1e-5)

    session = onnxruntime.InferenceSession(classifier, providers=['CPUExecutionProvider'])
    assert session.get_modelmeta().custom_metadata_map == {'levels': '1:4 2:4 4:4', 'tile': '16'}
    for size in ((33, 50), (7, 100)):
        x = torch.rand(1, case.shape[0], *size)
        with torch.no_grad():
            expected = net.predict(x, 16)
        np.testing.assert_allclose(session.run(['log_probs'], {'lq': x.numpy()})[0], expected, rtol=0, atol=1e-5)


def test_torch_export_takes_any_size(tmp_path):
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    (path,) = written(net, tmp_path, [-1], ['pt2'])
    assert path.name == 'net_4of4.pt2'
    program = torch.export.load(path).module()
    for size in ((9, 31), (40, 8)):
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(program(x), at_level(net, x, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize('size', [(8, 8), (4, 12), (20, 16)])
def test_masks_of_traceable_blocks_are_those_of_basicsr(size):
    case = IMAGE_CASES['SwinIR pixelshuffle']
    plain, changed = (build_network(dict(case.base)).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    changed.load_state_dict(plain.state_dict())
    make_traceable(changed)
    shifted = [model.layers[0].residual_group.blocks[1] for model in (plain, changed)]
    masks = [block.calculate_mask(size) for block in shifted]
    assert torch.equal(*masks) and bool((masks[0] == -100).any())
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(plain(x), changed(x))


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(traced, 'TOLERANCE', 1e-12)
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    with pytest.raises(ExportError, match=r'net_1of4\.onnx would not compute what PyTorch does: on 16 x 24 pixels'):
        written(net, tmp_path, [0], ['onnx'])
    assert list(tmp_path.iterdir()) == []


def test_videos_are_exported_as_checkpoints_only(tmp_path):
    net = WHOLE_CASES['DUF'].net()
    assert len(written(net, tmp_path)) == 2
    with pytest.raises(ExportError, match='DUF takes several frames .* as pth or safetensors'):
        written(net, tmp_path, [0], ['pt2'])


@pytest.mark.parametrize('module', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_names_the_extra(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExportError, match=rf"needs {module} .*pip install 'cp-basicsr\[export\]'"):
        written(IMAGE_CASES['SRVGGNetCompact'].net(), tmp_path / 'out', [0], ['onnx'])
    assert not (tmp_path / 'out').exists()


def test_the_command_writes_and_proves(checkpoint, tmp_path, capsys):
    main(['--model', str(checkpoint[1]), '-o', str(tmp_path / 'out'), '--level', '0', '-1', '--format', 'safetensors'])
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'small_1of4.safetensors', 'small_4of4.safetensors',
    ]  # fmt: skip
    text = capsys.readouterr().out
    # Two 8 x 8 and one 27 x 8 layers of 3 x 3: 387 columns of 8 weights, two groups each.
    assert '1:4 holds in all 3 prunable layers, in each of their 774 groups: 774 of 3,096 weights (25.0 %)' in text
    assert 'Dense: body.0: 3 input channels are fewer than m = 4.' in text
    assert 'The densest level, 4:4, asks for no zeros' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'missing.pth', '-o', 'out'], "'missing.pth' is neither a file"),
        (['--model', 'small.pth', '-o', 'out', '--level', '2:4'], '--level is 2:4; write all, or level indices'),
        (['--verify', 'missing.pth'], 'missing.pth: no such file'),
        (['--verify', 'small.txt'], "the ending '.txt' is none of .pth, .safetensors, .pt2, .onnx"),
    ],
)
def test_refusals_name_what_is_wrong(arguments, message, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint[1].parent)
    with pytest.raises(SystemExit, match=message.replace('(', r'\(')) as refusal:
        main(arguments)
    assert refusal.value.code not in (0, None)


def test_an_output_folder_that_is_a_file_is_named(checkpoint, tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(SystemExit, match=r"File exists: .*file'"):
        main(['--model', str(checkpoint[1]), '-o', str(tmp_path / 'file')])
    assert (tmp_path / 'file').read_text() == 'mine'


def test_an_unknown_level_is_refused(tmp_path):
    with pytest.raises(PatternError, match='level 3 does not exist'):
        written(IMAGE_CASES['SRVGGNetCompact'].net(), tmp_path, [3])
