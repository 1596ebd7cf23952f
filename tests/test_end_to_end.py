"""The main job as a user starts it: train through three stages, be killed, resume, test; from any folder."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml
from training import SWINIR, user_options, user_test_options, write_pairs

from cp_basicsr.data.lmdb_folder import make_lmdb

Write = Callable[[dict], Path]
SIZE = (64, 80)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write options to a YAML file and return its path."""

    def write_options(options: dict[str, Any]) -> Path:
        path = tmp_path / f'{len(list(tmp_path.glob("*.yml")))}.yml'
        path.write_text(yaml.safe_dump(options, sort_keys=False))
        return path

    return write_options


def log_of(folder: Path) -> str:
    """All that BasicSR logged into a folder, oldest first."""
    return ''.join(path.read_text() for path in sorted(folder.glob('*.log'), key=lambda path: path.stat().st_mtime))


def kill_after(command: list[Any], cwd: Path, state: Path) -> str:
    """Start a command, kill it without warning as soon as it has written a training state; return its output."""
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    with (cwd / 'killed.txt').open('w') as output:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        status = process.wait()
    output = (cwd / 'killed.txt').read_text()
    assert status == -9, output[-3000:]
    return output


def test_unmodified_basicsr_scripts_train_are_killed_resume_and_test(
    clean_python: Path, run, write: Write, tmp_path: Path
) -> None:
    checkout = tmp_path / 'BasicSR'
    (checkout / 'basicsr').mkdir(parents=True)
    for script in ('train.py', 'test.py'):
        shutil.copy(Path(find_spec('basicsr').origin).with_name(script), checkout / 'basicsr')
    write_pairs(tmp_path, size=SIZE)
    iters = {'supernet': 3, 'classifier': 3, 'joint': 40}
    options = user_options(
        tmp_path,
        stages=[{'name': name, 'iters': count} for name, count in iters.items()],
        total_iter=46,
        ema_decay=0.9,
    )
    for side in ('gt', 'lq'):
        make_lmdb(tmp_path / side, tmp_path / f'{side}.lmdb')
        options['datasets']['train'][f'dataroot_{side}'] = str(tmp_path / f'{side}.lmdb')
    options['datasets']['train']['io_backend'] = {'type': 'lmdb'}
    options['val'] |= {'val_freq': 23, 'save_img': True}
    options['logger']['save_checkpoint_freq'] = 5
    train = [clean_python, 'basicsr/train.py', '-opt', write(options)]
    experiment = checkout / 'experiments/tiny'
    models, states = experiment / 'models', experiment / 'training_states'

    kill_after(train, checkout, states / '5.state')
    assert not (models / 'net_g_latest.pth').exists()
    run(*train, '--auto_resume', cwd=checkout)
    log = log_of(experiment)
    resumed = int(re.search(r'Resuming training from epoch: \d+, iter: (\d+)\.', log)[1])
    assert resumed % 5 == 0 and f'Start training from epoch: 0, iter: {resumed}' in log
    logged = [int(found) for found in re.findall(r'\[epoch:.*?iter:\s*([\d,]*\d)', log)]
    assert logged.count(46) == 1 and set(logged) == set(range(1, 47))
    for name in iters:
        assert f'Stage {name}: iterations ' in log
    assert 'l_pix_level0: ' in log and 'l_oracle: ' in log and 'l_pix_chosen: ' in log
    for file in (*models.iterdir(), *states.iterdir()):
        torch.load(file, weights_only=True)
    assert set(torch.load(models / 'net_g_latest.pth', weights_only=True)) == {'params', 'params_ema'}
    assert (experiment / 'visualization/image0/image0_46.png').is_file()
    assert list((checkout / 'tb_logger/tiny').glob('events.out.tfevents.*'))

    test = user_test_options(options, models / 'net_g_latest.pth')
    test['path']['param_key_g'] = 'params_ema'
    run(clean_python, 'basicsr/test.py', '-opt', write(test), cwd=checkout)
    results = checkout / 'results/tiny'
    macs = float(re.search(r'# MACs: ([\d.]+) % of dense', log_of(results))[1])
    assert macs == pytest.approx(60, abs=3)
    assert re.search(r'# psnr: \d+\.\d+.*# ssim: 0\.\d+.*# macs: 0\.\d+', log_of(results), re.DOTALL)
    assert len(re.findall(r'level \d \(\d:4\) [\d.]+ %', log_of(results))) == 3
    pictures = sorted((results / 'visualization/val').iterdir())
    assert [picture.name for picture in pictures] == ['image0_tiny.png', 'image1_tiny.png']
    assert all(cv2.imread(str(picture)).shape == (2 * SIZE[0], 2 * SIZE[1], 3) for picture in pictures)
    # What testing wrote equals what the last validation of training saw: both restored with the averaged network.
    last = log.rindex('Validation val')
    assert re.search(r'# psnr: ([\d.]+)', log[last:])[1] == re.search(r'# psnr: ([\d.]+)', log_of(results))[1]


def test_our_commands_from_any_folder_with_force_yml_and_debug(run, write: Write, source: Path, tmp_path: Path) -> None:
    """Everything lands below the working directory; a budget asked at test time needs no training."""
    write_pairs(tmp_path, size=SIZE)
    options = user_options(tmp_path, SWINIR, iters=3)
    here = tmp_path / 'here'
    here.mkdir()
    command = [sys.executable, '-m', 'cp_basicsr.train', '-opt', write(options), '--debug']
    forced = ['--force_yml', 'name=forced', 'train:ema_decay=0.5', 'val:budget=0.8', 'val:tile:size=4']
    run(*command, *forced, cwd=here, PYTHONPATH=str(source))
    experiment = here / 'experiments/debug_forced'
    assert [folder.name for folder in here.iterdir()] == ['experiments']
    assert sorted(file.name for file in (experiment / 'models').iterdir()) == ['net_g_8.pth', 'net_g_latest.pth']
    content = torch.load(experiment / 'models/net_g_latest.pth', weights_only=True)
    assert set(content) == {'params', 'params_ema'}
    assert int(content['params']['calibration.tile']) == 4
    log = log_of(experiment)
    assert float(re.findall(r'# MACs: ([\d.]+) % of dense', log)[-1]) == pytest.approx(80, abs=3)

    test = user_test_options(options, experiment / 'models/net_g_latest.pth')
    test['val']['tile'] = {'size': 4}
    command = [sys.executable, '-m', 'cp_basicsr.test', '-opt', write(test)]
    run(*command, '--force_yml', 'val:budget=0.7', cwd=here, PYTHONPATH=str(source))
    log = log_of(here / 'results/tiny')
    assert float(re.search(r'# MACs: ([\d.]+) %', log)[1]) == pytest.approx(70, abs=3)
    engine = r'Engine: (\d+) of \1 prunable layers run as compiled avx\w+ code'
    assert len(re.findall(rf'{engine}|Layers run on the masked reference path: ', log)) == 1
    assert len(list((here / 'results/tiny/visualization/val').iterdir())) == 2
