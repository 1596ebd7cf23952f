"""The profile names every layer that runs, with work in closed form, times that add up, and what ran it."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from networks import CLASSIFIER, IMAGE_CASES, SPARSITY, WHOLE_CASES
from pictures import scene, write
from torch import nn

from cp_basicsr import load
from cp_basicsr.engine.compiled_layer import Epilogue
from cp_basicsr.engine.host import EngineUnavailableError, processor_sets
from cp_basicsr.engine.job import Activation
from cp_basicsr.models.calibrating import calibrate
from cp_basicsr.tools.profile import main
from cp_basicsr.tools.profiling import watching
from cp_basicsr.tools.profiling.measuring import profile
from cp_basicsr.tools.profiling.table import as_text
from cp_basicsr.tools.profiling.watching import Watch, describe_epilogue

pytestmark = pytest.mark.usefixtures('one_thread')
NET = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 2}


@pytest.fixture
def compiled():
    try:
        return processor_sets()[0]
    except EngineUnavailableError as error:
        pytest.skip(str(error))


def of(case, levels=(0, 2), **sparsity):
    return profile(case.net(**sparsity), case.input(), levels, 2)


def test_layers_of_a_fused_network_are_compiled_and_counted(compiled):
    case = IMAGE_CASES['SRVGGNetCompact']  # 3 -> 8 -> 8 -> 8 -> 27 channels, 3 x 3, on 8 x 12 pixels
    found = of(case, levels=(0, 1, 2))
    assert [level.label for level in found.levels] == ['1:4', '2:4', '4:4'] and found.untraced is None
    for level, density in zip(found.levels, (0.25, 0.5, 1.0), strict=True):
        assert [layer.name for layer in level.layers] == ['body.0', 'body.2', 'body.4', 'body.6']
        assert [layer.density for layer in level.layers] == [1.0, density, density, density]
        assert [layer.weights for layer in level.layers] == [216, *(int(density * n) for n in (576, 576, 1944))]
        assert [layer.macs for layer in level.layers] == [96 * layer.weights for layer in level.layers]
        assert level.macs == sum(layer.macs for layer in level.layers) and level.other_macs == 0
        assert {layer.path.split()[0] for layer in level.layers} == {compiled}
        assert [layer.fused for layer in level.layers][:3] == ['leaky'] * 3
        assert 'shuffle 3' in level.layers[3].fused
        assert level.layers[1].output == (8, 8, 12) and level.layers[3].weight == (27, 8, 3, 3)
        assert all(layer.milliseconds > 0 for layer in level.layers) and level.milliseconds > 0
    assert found.levels[2].share == 1.0


@pytest.mark.usefixtures('reference_path')
def test_without_the_engine_each_layer_says_why():
    found = of(IMAGE_CASES['SRVGGNetCompact'])
    sparse, dense = ([(layer.path, layer.reason, layer.fused) for layer in level.layers] for level in found.levels)
    why = 'CP_ENGINE=reference'
    assert sparse == [('pytorch', why, ''), *[('reference', why, '')] * 3]
    assert dense == [('pytorch', why, '')] * 4


def test_layers_that_are_not_compiled_say_why(compiled):
    rows = {layer.name: layer for layer in of(IMAGE_CASES['RCAN']).levels[0].layers}
    attention = 'body.0.residual_group.0.rcab.3.attention.1'
    assert rows[attention].path == 'reference' and '(4, 1, 1) is not worth it' in rows[attention].reason
    assert rows['conv_after_body'].path == compiled and rows['conv_after_body'].fused == 'residual'

    found = of(WHOLE_CASES['DUF'], levels=(0,))
    reasons = {layer.reason for layer in found.levels[0].layers if layer.path == 'reference'}
    assert any('NMConv3d is no two-dimensional convolution' in str(reason) for reason in reasons)


def test_attention_between_the_layers_is_counted(compiled):
    found = of(IMAGE_CASES['SwinIR pixelshuffle'], levels=(2,)).levels[0]
    # Two blocks, two products of 16 x 16 scores and 8 channels in each of six windows.
    assert found.other_macs == 2 * 2 * 6 * 16 * 16 * 8 and found.rest > 0
    qkv = next(layer for layer in found.layers if layer.name.endswith('attn.qkv'))
    assert qkv.output == (6, 16, 24) and qkv.macs == 6 * 16 * 24 * 8


def test_a_call_within_a_call_is_not_counted_twice(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(watching.time, 'perf_counter', lambda: next(clock))
    outer, inner = nn.Identity(), nn.Identity()
    watch = Watch({outer: 'outer', inner: 'inner'})
    for _ in range(2):
        with watch.timing(outer), watch.timing(inner):
            pass
    assert {name: note.seconds for name, note in watch.notes.items()} == {'outer': 6}


def test_what_is_fused_is_named():
    slopes, residual = torch.zeros(4), torch.zeros(1)
    epilogue = Epilogue(Activation.SLOPE, slopes, 2, residual, 0.1)
    assert describe_epilogue(epilogue) == 'leaky, shuffle 2, residual 0.1'
    assert describe_epilogue(Epilogue()) == ''


def test_the_table_has_a_line_for_each_layer_and_marks_reasons(monkeypatch):
    monkeypatch.setenv('CP_ENGINE', 'reference')
    text = as_text(of(IMAGE_CASES['SRVGGNetCompact']))
    assert text.count('reference (a)') == 3 and '(a) CP_ENGINE=reference' in text
    assert [line.split()[0] for line in text.splitlines()[1:7]] == [
        'layer', 'body.0', 'body.2', 'body.4', 'body.6', 'between',
    ]  # fmt: skip
    assert text.splitlines()[3].split()[:7] == ['body.2', '8x8x3x3', '8x8x12', '25', '%', '144', '0.01']
    assert text.splitlines()[-1].startswith('dense, plain PyTorch') and text.endswith('1.00x')


def test_the_command_profiles_a_checkpoint_and_writes_json(tmp_path, capsys):
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    arguments = ['--size', '8x12', '--level', '-1', '--repeats', '1', '--json', str(tmp_path / 'out.json')]
    main(['--model', str(tmp_path / 'net.pth'), *arguments])
    assert 'SRVGGNetCompact' in capsys.readouterr().out
    written = json.loads((tmp_path / 'out.json').read_text())
    assert [level['label'] for level in written['levels']] == ['4:4'] and written['shape'] == [3, 8, 12]
    assert written['levels'][0]['layers'][1]['macs'] == 96 * 576


def test_the_command_profiles_an_option_file(tmp_path, capsys):
    block = {'type': 'ClassPruningNet', 'base': NET, 'sparsity': SPARSITY, 'classifier': CLASSIFIER}
    (tmp_path / 'opt.yml').write_text(yaml.safe_dump({'network_g': block, 'path': {'pretrain_network_g': None}}))
    main(['-opt', str(tmp_path / 'opt.yml'), '--size', '8x8', '--repeats', '1', '--level', '0'])
    assert 'SRVGGNetCompact (random weights), 1x3x8x8' in capsys.readouterr().out
    (tmp_path / 'opt.yml').write_text(yaml.safe_dump({'network_g': {'type': 'EDSR'}}))
    with pytest.raises(SystemExit, match="network_g.type is 'EDSR'; only a ClassPruningNet has levels"):
        main(['-opt', str(tmp_path / 'opt.yml')])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--size', '8'], "--size is '8'; write height and width"),
        (['--size', '8x10'], 'SwinIR takes multiples of 4 pixels: 8x12'),
        (['--level', 'dense', '--size', '8x8'], "--level is 'dense'; write all, or the index"),
        (['--level', '3', '--size', '8x8'], 'level 3 does not exist'),
        (['--frames', '2', '--size', '8x8'], '--frames is 2, but SwinIR restores single images; leave it out'),
        (['--size', '8x8', '--json', '/dev/null/no/out.json'], 'out.json cannot be written'),
    ],
)
def test_refusals_name_what_is_wrong(arguments, message, tmp_path):
    torch.save({'params': IMAGE_CASES['SwinIR pixelshuffle'].net().state_dict()}, tmp_path / 'net.pth')
    with pytest.raises(SystemExit, match=message):
        main(['--model', str(tmp_path / 'net.pth'), *arguments])


def test_an_engine_that_no_machine_has_is_named(tmp_path, monkeypatch):
    torch.save({'params': IMAGE_CASES['SRVGGNetCompact'].net().state_dict()}, tmp_path / 'net.pth')
    monkeypatch.setenv('CP_ENGINE', 'avx51')
    with pytest.raises(SystemExit, match="CP_ENGINE is 'avx51'; allowed: reference"):
        main(['--model', str(tmp_path / 'net.pth'), '--size', '8x8'])


@pytest.fixture
def photo(tmp_path):
    """A gray picture, flat in one half, and the checkpoint of a calibrated network x3 that is routed by tiles of 8."""
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    calibrate(net, [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))], 0.7, 8)
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    write(tmp_path / 'photo.png', scene(64, 80, channels=1))
    return tmp_path / 'photo.png'


def test_a_picture_is_timed_along_its_level_map(photo, capsys):
    command = ['--model', str(photo.with_name('net.pth')), '--input', str(photo), '--repeats', '1', '--level', '0']
    main([*command, '--budget', '0.8', '--json', str(photo.with_name('out.json'))])
    found = json.loads(photo.with_name('out.json').read_text())
    routed = found['routed']
    assert found['shape'] == [3, 64, 80] and routed['budget'] == 0.8 and routed['tile'] == 8
    restored = load(photo.with_name('net.pth')).restore(scene(64, 80, channels=1), budget=0.8)
    assert routed['macs'] == restored.macs and routed['share'] == pytest.approx(restored.macs_share)
    assert list(routed['usage'].values()) == pytest.approx(
        (np.bincount(restored.levels.ravel(), minlength=3) / 80).tolist()
    )
    assert routed['milliseconds'] > 0
    text = capsys.readouterr().out
    assert re.search(r'^Tiles of 8 x 8 pixels: \d+ % at 1:4, \d+ % at 2:4, \d+ % at 4:4\.$', text, re.M)
    assert re.search(rf'^routed, budget 0\.8 +{restored.macs / 1e6:.2f} +\d+\.\d % +\d+\.\d\d +\d+\.\d\dx$', text, re.M)
    main(command)
    assert 'routed, budget 0.7' in capsys.readouterr().out, 'as trained'


def test_pictures_that_cannot_be_profiled_are_refused(photo, capsys):
    command = ['--model', str(photo.with_name('net.pth'))]
    for arguments, message in [
        (['--input', 'absent.png'], r'--input: absent\.png cannot be read \(No such file or directory\)'),
        (['--input', str(photo), '--budget', '0.01'], r'budget is 0\.01, outside what the levels allow'),
        (['--input', str(photo), '--budget', '3'], r'--budget is 3\.0; allowed: a number from 0 to 2'),
    ]:
        with pytest.raises(SystemExit, match=message):
            main([*command, *arguments])
    for arguments, message in [
        (['--budget', '0.5'], '--budget needs --input PICTURE'),
        (['--input', str(photo), '--size', '8x8'], '--input has a size of its own'),
    ]:
        with pytest.raises(SystemExit):
            main([*command, *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize('level', [0, 1])
def test_layers_of_transformed_weights_say_so(compiled, level):
    net = build_network(
        {
            'type': 'ClassPruningNet',
            'base': {'type': 'SRVGGNetCompact', 'num_feat': 48, 'num_conv': 1, 'upscale': 1},
            'sparsity': {'m': 8, 'levels': [1, 8]},
        }
    ).eval()
    rows = {layer.name: layer for layer in profile(net, torch.rand(1, 3, 16, 16), [level], 1).levels[0].layers}
    assert rows['body.2'].path == (f'{compiled} winograd' if level else compiled)
