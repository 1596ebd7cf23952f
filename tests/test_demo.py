"""What the demo makes of its option file; the demo itself takes minutes and is run by .ci/run."""

import sys
from pathlib import Path

import pytest
import yaml

from cp_basicsr import demo
from cp_basicsr.option_files import option_file


@pytest.fixture
def options() -> dict:
    return yaml.safe_load(option_file(f'{demo.NAME}.yml').read_text())


def test_the_short_form_shortens_every_stage_and_still_adds_up(options: dict) -> None:
    full = [stage['iters'] for stage in options['train']['stages']]
    assert options['train']['total_iter'] == sum(full)
    demo._shorten(options)
    short = [stage['iters'] for stage in options['train']['stages']]
    assert all(0 < few <= many // 5 for few, many in zip(short, full, strict=True))
    assert options['train']['total_iter'] == sum(short)
    from cp_basicsr.models.training_options import TrainingOptions

    assert TrainingOptions.read(options['train']).plan.stages[-1].last == sum(short)


def test_what_it_trains_on_tests_on_and_writes_belongs_together(options: dict) -> None:
    """The test file takes the network and the last checkpoint of the training; all data are below the demo's folder."""
    test = demo._test_options(options)
    assert test['network_g'] == options['network_g'] and test['scale'] == options['scale']
    assert test['path']['pretrain_network_g'] == f'experiments/{options["name"]}/models/net_g_latest.pth'
    assert (test['path'].get('param_key_g') == 'params_ema') == (options['train'].get('ema_decay', 0) > 0)
    assert list(test['datasets']) == ['test'] and test['val']['save_img'] is True
    blocks = [*options['datasets'].values(), options['train']['calibration']['dataset'], *test['datasets'].values()]
    roots = [value for block in blocks for key, value in block.items() if key.startswith('dataroot_')]
    assert len(roots) >= len(blocks) and all(Path(root).is_relative_to(demo.DATA) for root in roots)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    demo.RESULTS.mkdir(parents=True)
    return tmp_path


def replace_command(here: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the demo start a Python script of ours in place of the training."""
    script = here / 'command'
    script.write_text(f'#!{sys.executable}\n{code}')
    script.chmod(0o755)
    monkeypatch.setattr(demo.sys, 'executable', str(script))


def test_a_step_shows_its_progress_and_keeps_its_log(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines = ['Start training from epoch: 0, iter: 0', '[tiny..][epoch:  0, iter:   1,250, lr:(1e-3,)]', 'End']
    replace_command(here, monkeypatch, f'import sys; print({chr(10).join(lines)!r}); print(sys.argv[1:])')
    demo._run('train', Path('my.yml'), 2000)
    assert '1250/2000' in capsys.readouterr().err
    log = (demo.RESULTS / 'train.log').read_text().splitlines()
    assert log[:3] == lines and log[3] == "['-m', 'cp_basicsr.train', '-opt', 'my.yml']"


def test_a_step_that_fails_is_named_with_its_log_and_its_last_words(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_command(here, monkeypatch, 'print("early\\n" * 40); raise SystemExit("no space left")')
    with pytest.raises(
        demo.DemoError, match=r'cp_basicsr\.test .* failed with status 1; its log is .*test\.log'
    ) as caught:
        demo._run('test', Path('my.yml'), 1)
    assert 'no space left' in str(caught.value) and str(caught.value).count('early') < 25


def test_option_files_of_the_demo_are_written_whole(here: Path) -> None:
    path = demo._write({'b': 1, 'a': [1, 2]}, demo.RESULTS / 'train.yml')
    assert yaml.safe_load(path.read_text()) == {'b': 1, 'a': [1, 2]}
    assert [file.name for file in demo.RESULTS.iterdir()] == ['train.yml']
