import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope='session')
def run() -> Run:
    """Run a command in `cwd`, without CUDA and with one thread. Fails with its output unless it returns `code`."""

    def run_command(
        *command: str | Path, cwd: Path, code: int | None = 0, **env: str | None
    ) -> subprocess.CompletedProcess:
        settings = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', **env}
        result = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={name: value for name, value in settings.items() if value is not None},
            capture_output=True,
            text=True,
        )
        if code is not None:
            assert result.returncode == code, f'{result.stdout[-3000:]}\n{result.stderr[-6000:]}'
        return result

    return run_command


@pytest.fixture
def reference_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks run in PyTorch, where equality is bit for bit; tests/engine compares compiled code with this path."""
    monkeypatch.setenv('CP_ENGINE', 'reference')


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread during the test: tiny networks run slower on more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What BasicSR's logger says during the test: one string for each entry, its level first."""
    entries: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entries.append(f'{record.levelname} {record.getMessage()}')

    handler, logger = Collect(), logging.getLogger('basicsr')
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield entries
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope='session')
def source() -> Path:
    """The folder of setup.py."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def wheel(source: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built from a copy of it that has one checkpoint more."""
    folder = tmp_path_factory.mktemp('wheel')
    copy = folder / 'source'
    for path in [
        *source.glob('*.*'),
        *source.glob('LICENSE'),
        *source.glob('cp_basicsr/**/*'),
        *source.glob('options/*'),
    ]:
        if path.is_file() and path.suffix != '.pyc':
            target = copy / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (copy / 'cp_basicsr/checkpoints').mkdir(exist_ok=True)
    (copy / 'cp_basicsr/checkpoints/for_test.pth').write_bytes(b'weights')
    options = ['--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', folder]
    run(sys.executable, '-m', 'pip', 'wheel', *options, copy, cwd=folder, PIP_NO_INDEX='1')
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='session')
def clean_python(wheel: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with `wheel` installed; what it depends on is borrowed from the running one."""
    folder = tmp_path_factory.mktemp('clean')
    run(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv', cwd=folder)
    python = folder / 'venv' / ('Scripts' if os.name == 'nt' else 'bin') / 'python'
    options = ['install', '--no-deps', '--no-index', wheel]
    run(sys.executable, '-m', 'pip', '--python', python, *options, cwd=folder)
    where = run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=folder).stdout.strip()
    borrowed = [path for path in sys.path if Path(path).name in ('site-packages', 'dist-packages')]
    (Path(where) / 'borrowed.pth').write_text('\n'.join(borrowed) + '\n')
    return python


@pytest.fixture
def plain_options(tmp_path: Path) -> dict:
    """Options of a very small SRModel with BasicSR's own parts, for x2 on three images of 48 x 48 in `tmp_path`."""
    generator = np.random.default_rng(0)
    for name in ('a', 'b', 'c'):
        gt = cv2.resize(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC)
        for folder, image in (('gt', gt), ('lq', cv2.resize(gt, (24, 24), interpolation=cv2.INTER_AREA))):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), image)
    images = {
        'type': 'PairedImageDataset',
        'dataroot_gt': str(tmp_path / 'gt'),
        'dataroot_lq': str(tmp_path / 'lq'),
        'io_backend': {'type': 'disk'},
    }
    loader = {
        'gt_size': 32,
        'use_hflip': True,
        'use_rot': True,
        'num_worker_per_gpu': 1,
        'batch_size_per_gpu': 1,
        'dataset_enlarge_ratio': 1,
    }
    return {
        'name': 'plain',
        'model_type': 'SRModel',
        'scale': 2,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {'train': {'name': 'train', **images, **loader}, 'val': {'name': 'val', **images}},
        'network_g': {'type': 'MSRResNet', 'num_feat': 4, 'num_block': 1, 'upscale': 2},
        'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
        'train': {
            'ema_decay': 0.9,
            'optim_g': {'type': 'Adam', 'lr': 1.0e-3, 'weight_decay': 0, 'betas': [0.9, 0.99]},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5},
            'total_iter': 4,
            'warmup_iter': -1,
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        },
        'val': {
            'val_freq': 2,
            'save_img': True,
            'suffix': None,
            'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': False}},
        },
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': True, 'wandb': None},
        'dist_params': {'backend': 'nccl', 'port': 29500},
    }


@pytest.fixture
def write_options(tmp_path: Path) -> Callable[[dict], Path]:
    """Write options to a new YAML file and return its path."""

    def write(options: dict) -> Path:
        path = tmp_path / f'{options["name"]}.yml'
        path.write_text(yaml.safe_dump(options, sort_keys=False))
        return path

    return write
