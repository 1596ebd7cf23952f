"""Whole runs: the option files that are written, the commands that are started, their logs and failures."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from training import user_options

from cp_basicsr.tools import whole_runs
from cp_basicsr.tools.whole_runs import RunError, run_command, test_options, write_options

test_options.__test__ = False  # pytest takes it for a test by its name


def replace_command(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let a script of ours be started in place of Python."""
    script = folder / 'command'
    script.write_text(f'#!{sys.executable}\n{code}')
    script.chmod(0o755)
    monkeypatch.setattr(whole_runs.sys, 'executable', str(script))


def test_a_command_shows_its_progress_and_keeps_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines = ['Start training from epoch: 0, iter: 0', '[tiny..][epoch:  0, iter:   1,250, lr:(1e-3,)]', 'End']
    replace_command(tmp_path, monkeypatch, f'import sys; print({chr(10).join(lines)!r}); print(sys.argv[1:])')
    run_command('train', Path('my.yml'), tmp_path / 'my.log', 2000, '--auto_resume')
    assert '1250/2000' in capsys.readouterr().err
    log = (tmp_path / 'my.log').read_text().splitlines()
    assert log[:3] == lines and log[3] == "['-m', 'cp_basicsr.train', '-opt', 'my.yml', '--auto_resume']"


def test_a_command_that_fails_is_named_with_its_log_and_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_command(tmp_path, monkeypatch, 'print("early\\n" * 40); raise SystemExit("no space left")')
    with pytest.raises(RunError, match=r'cp_basicsr\.test .* failed with status 1; its log is .*my\.log') as caught:
        run_command('test', Path('my.yml'), tmp_path / 'my.log', 1)
    assert 'no space left' in str(caught.value) and str(caught.value).count('early') < 25


def test_option_files_are_written_whole(tmp_path: Path) -> None:
    path = write_options({'b': 1, 'a': [1, 2]}, tmp_path / 'train.yml')
    assert yaml.safe_load(path.read_text()) == {'b': 1, 'a': [1, 2]}
    assert [file.name for file in tmp_path.iterdir()] == ['train.yml']


@pytest.mark.parametrize('decay', [0, 0.999])
def test_a_test_file_has_the_network_and_a_checkpoint_of_its_training(tmp_path: Path, decay: float) -> None:
    """With an EMA the averaged weights are tested; without one there are none."""
    train = user_options(tmp_path, ema_decay=decay)
    sets = {'Set5': train['datasets']['val']}
    test = test_options(train, sets, 'net_g_7')
    assert test['network_g'] == train['network_g'] and test['scale'] == train['scale'] and test['datasets'] == sets
    assert test['path']['pretrain_network_g'] == 'experiments/tiny/models/net_g_7.pth'
    assert test['path'].get('param_key_g') == ('params_ema' if decay else None)
    assert test['val']['budget'] == train['val']['budget'] and 'train' not in test


@pytest.mark.parametrize('stop', [KeyboardInterrupt, SystemExit])
def test_what_is_stopped_does_not_train_on(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither Ctrl-C nor `kill` may leave a trainer behind, whom the next run of the same would meet."""
    replace_command(tmp_path, monkeypatch, 'import time; print("begun", flush=True); time.sleep(60)')
    started: list[subprocess.Popen] = []

    class Watched(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    class Found:
        def search(self, line: str) -> None:
            if stop is KeyboardInterrupt:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(whole_runs.subprocess, 'Popen', Watched)
    monkeypatch.setattr(whole_runs, 'ITERATION', Found())
    with pytest.raises(stop):
        run_command('train', Path('my.yml'), tmp_path / 'my.log', 1)
    assert started[0].returncode == -signal.SIGTERM


def test_the_log_of_a_run_that_goes_on_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_command(tmp_path, monkeypatch, 'print("once")')
    for _ in range(2):
        run_command('train', Path('my.yml'), tmp_path / 'my.log', 1)
    assert (tmp_path / 'my.log').read_text() == 'once\nonce\n'
