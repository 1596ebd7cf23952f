"""BasicSR's scripts as a user starts them, with BasicSR's own model and datasets, on a machine without CUDA."""

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

Run = Callable[..., CompletedProcess]

Write = Callable[[dict], Path]


def test_literal_basicsr_scripts_train_resume_and_test(
    clean_python: Path, run: Run, plain_options: dict, write_options: Write, tmp_path: Path
) -> None:
    """`python basicsr/train.py` in an unmodified checkout: sys.path[0] is its basicsr folder, itself on PYTHONPATH."""
    checkout = tmp_path / 'BasicSR'
    published = Path(find_spec('basicsr').origin).parent
    shutil.copytree(published, checkout / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    path = write_options(plain_options)
    strict = [clean_python, '-W', 'error::RuntimeWarning']

    run(*strict, 'basicsr/train.py', '-opt', path, cwd=checkout, PYTHONPATH=str(checkout))
    states = checkout / 'experiments/plain/training_states'
    assert sorted(state.name for state in states.iterdir()) == ['2.state', '4.state']

    (states / '4.state').unlink()
    longer = ['--auto_resume', '--force_yml', 'train:total_iter=6']
    result = run(*strict, 'basicsr/train.py', '-opt', path, *longer, cwd=checkout, PYTHONPATH=str(checkout))
    assert 'Resuming training from epoch: 0, iter: 2.' in result.stdout + result.stderr
    assert torch.load(states / '6.state', weights_only=True)['iter'] == 6

    plain_options['path']['pretrain_network_g'] = str(checkout / 'experiments/plain/models/net_g_latest.pth')
    plain_options['datasets'] = {'test_1': plain_options['datasets']['val']}
    plain_options['name'] = 'plain_test'
    path = write_options(plain_options)
    run(*strict, 'basicsr/test.py', '-opt', path, cwd=checkout, PYTHONPATH=str(checkout))
    assert len(list((checkout / 'results/plain_test').rglob('*.png'))) == 3


def test_our_launchers_distributed_without_cuda_and_entry_points(
    clean_python: Path, run: Run, plain_options: dict, write_options: Write, tmp_path: Path
) -> None:
    """Two processes under torchrun, everything lands below the working directory."""
    torchrun = [clean_python, '-W', 'error::RuntimeWarning', '-m', 'torch.distributed.run', '--standalone']
    environment = {'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'}
    plain_options['train']['total_iter'] = 2
    plain_options['datasets']['train']['num_worker_per_gpu'] = 0
    path = write_options(plain_options)
    here = tmp_path / 'here'
    here.mkdir()

    train = [*torchrun, '--nproc-per-node', '2', '-m', 'cp_basicsr.train', '-opt', path, '--launcher', 'pytorch']
    result = run(*train, cwd=here, **environment)
    assert 'world_size: 2' in result.stdout + result.stderr
    assert {folder.name for folder in here.iterdir()} == {'experiments', 'tb_logger'}
    weights = here / 'experiments/plain/models/net_g_latest.pth'
    assert set(torch.load(weights, weights_only=True)) == {'params', 'params_ema'}

    plain_options['path']['pretrain_network_g'] = str(weights)
    plain_options['datasets'] = {'test_1': plain_options['datasets']['val']}
    path = write_options(plain_options)
    result = run(clean_python, '-m', 'cp_basicsr.test', '-opt', path, cwd=here, **environment)
    assert '# psnr: ' in result.stdout + result.stderr
    assert len(list((here / 'results/plain/visualization/val').glob('*.png'))) == 3


@pytest.mark.parametrize('script', ['train', 'test'])
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'No such file or directory'),
        (b'name: [1, 2', 'not valid YAML'),
        (b'just words', 'expected `key: value` lines'),
        (b'\xff\xfe\x00\x01', 'not a text file'),
    ],
)
def test_an_unusable_option_file_is_named(
    script: str, content: bytes | None, message: str, run: Run, source: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / 'my.yml').write_bytes(content)
    command = [sys.executable, '-m', f'cp_basicsr.{script}', '-opt', 'my.yml', '--debug']
    result = run(*command, cwd=tmp_path, code=1, PYTHONPATH=str(source))
    assert result.stderr.startswith('-opt my.yml: ') and message in result.stderr
    assert 'Traceback' not in result.stderr


def test_a_folder_as_option_file_is_named(run: Run, source: Path, tmp_path: Path) -> None:
    result = run(sys.executable, '-m', 'cp_basicsr.train', '-opt', '.', cwd=tmp_path, code=1, PYTHONPATH=str(source))
    assert result.stderr.startswith('-opt .: Is a directory')
