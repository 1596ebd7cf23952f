"""The main job on photographs that come with scikit-image: train, test, table, pictures.

    python -m cp_basicsr.demo            (about three minutes on two cores)
    python -m cp_basicsr.demo --short    (the same steps with a tenth of the training)

Everything is written below the working directory: datasets/demo, experiments/demo_cp_swinir, results/demo.
"""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from tqdm import tqdm

from cp_basicsr.data.demo_set import make_demo_set
from cp_basicsr.option_files import option_file
from cp_basicsr.tools import leaderboard, plots
from cp_basicsr.tools.leaderboards.settings import Settings
from cp_basicsr.tools.report import write_text

NAME = 'demo_cp_swinir'
BUDGETS = (0.75, 0.5, 0.35)
PAGES = 6
SHORT_FACTOR = 10
DATA = Path('datasets/demo')
RESULTS = Path('results/demo')
ITERATION = re.compile(r'epoch:.*?iter:\s*([\d,]+)')


class DemoError(RuntimeError):
    """A step of the demo failed; the message names its log."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--short', action='store_true', help='a tenth of the training, to see that everything runs')
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    log = logging.getLogger('cp_basicsr.demo')

    log.info('1/4  The demo set, from the photographs inside scikit-image: %s', DATA)
    make_demo_set(DATA)
    RESULTS.mkdir(parents=True, exist_ok=True)
    train_options = yaml.safe_load(option_file(f'{NAME}.yml').read_text())
    if options.short:
        _shorten(train_options)

    log.info('2/4  Training through the three stages: experiments/%s', NAME)
    _run('train', _write(train_options, RESULTS / 'train.yml'), train_options['train']['total_iter'])

    log.info('3/4  Testing: results/%s and %s', NAME, RESULTS)
    test_file = _write(_test_options(train_options), RESULTS / 'test.yml')
    _run('test', test_file, 1)
    leaderboard.run([test_file], RESULTS, Settings(BUDGETS, pages=PAGES))
    log.info('\n%s', (RESULTS / 'results.md').read_text(encoding='utf-8'))

    plots.plot_files([RESULTS / 'results.json'], RESULTS / 'plots')
    log.info('4/4  Table: %s; level maps: %s', (RESULTS / 'results.md').resolve(), RESULTS / 'pages')
    log.info('     plots: %s', RESULTS / 'plots')


def _shorten(options: dict) -> None:
    train = options['train']
    for stage in train['stages']:
        stage['iters'] //= SHORT_FACTOR
    train['total_iter'] = sum(stage['iters'] for stage in train['stages'])


def _test_options(train: dict) -> dict:
    """The test option file that belongs to the training: its network, last checkpoint and test photographs."""
    keep = ('model_type', 'scale', 'num_gpu', 'manual_seed', 'network_g')
    checkpoint = Path('experiments') / NAME / 'models' / 'net_g_latest.pth'
    return {
        'name': NAME,
        **{key: train[key] for key in keep},
        'datasets': {'test': train['datasets']['val']},
        'val': {**train['val'], 'save_img': True, 'suffix': None},
        'path': {'pretrain_network_g': str(checkpoint), 'param_key_g': 'params_ema', 'strict_load_g': True},
    }


def _write(options: dict, path: Path) -> Path:
    write_text(path, yaml.safe_dump(options, sort_keys=False))
    return path


def _run(command: str, options: Path, iterations: int) -> None:
    """Run ``python -m cp_basicsr.COMMAND`` with a progress bar, its output in a log file.

    Raises:
        DemoError: it failed.
    """
    log_file = RESULTS / f'{command}.log'
    call = [sys.executable, '-m', f'cp_basicsr.{command}', '-opt', str(options)]
    with log_file.open('w', buffering=1) as log, tqdm(total=iterations, unit='it') as progress:
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout:
            log.write(line)
            if found := ITERATION.search(line):
                progress.update(int(found[1].replace(',', '')) - progress.n)
    if process.wait():
        last = ''.join(log_file.read_text().splitlines(keepends=True)[-20:])
        raise DemoError(f'{" ".join(call)} failed with status {process.returncode}; its log is {log_file}:\n{last}')


if __name__ == '__main__':
    main()
