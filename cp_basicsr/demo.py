"""The main job on photographs that come with scikit-image: train, test, table, pictures.

    python -m cp_basicsr.demo            (three to five minutes on two cores)
    python -m cp_basicsr.demo --short    (the same steps with a tenth of the training)

Everything is written below the working directory: datasets/demo, experiments/demo_cp_swinir, results/demo.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from cp_basicsr.data.demo_set import make_demo_set
from cp_basicsr.option_files import option_file
from cp_basicsr.tools import leaderboard, plots
from cp_basicsr.tools.leaderboards.settings import Settings
from cp_basicsr.tools.whole_runs import RunError, run_command, shortened, test_options, write_options

NAME = 'demo_cp_swinir'
BUDGETS = (0.75, 0.5, 0.35)
PAGES = 6
SHORT_FACTOR = 10
DATA = Path('datasets/demo')
RESULTS = Path('results/demo')


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--short', action='store_true', help='a tenth of the training, to see that everything runs')
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        _run(options.short)
    except (*leaderboard.ERRORS, RunError) as error:
        raise SystemExit(str(error)) from error


def _run(short: bool) -> None:
    log = logging.getLogger('cp_basicsr.demo')

    log.info('1/4  The demo set, from the photographs inside scikit-image: %s', DATA)
    make_demo_set(DATA)
    RESULTS.mkdir(parents=True, exist_ok=True)
    train_options = yaml.safe_load(option_file(f'{NAME}.yml').read_text())
    if short:
        _shorten(train_options)

    log.info('2/4  Training through the three stages: experiments/%s', NAME)
    train_file = write_options(train_options, RESULTS / 'train.yml')
    run_command('train', train_file, RESULTS / 'train.log', train_options['train']['total_iter'])

    log.info('3/4  Testing: results/%s and %s', NAME, RESULTS)
    test = test_options(train_options, {'test': train_options['datasets']['val']})
    test_file = write_options(test, RESULTS / 'test.yml')
    run_command('test', test_file, RESULTS / 'test.log', 1)
    leaderboard.run([test_file], RESULTS, Settings(BUDGETS, pages=PAGES))
    log.info('\n%s', (RESULTS / 'results.md').read_text(encoding='utf-8'))

    plots.plot_files([RESULTS / 'results.json'], RESULTS / 'plots')
    log.info('4/4  Table: %s; level maps: %s', (RESULTS / 'results.md').resolve(), RESULTS / 'pages')
    log.info('     plots: %s', RESULTS / 'plots')


def _shorten(options: dict) -> None:
    options['train'] = shortened(options['train'], SHORT_FACTOR)


if __name__ == '__main__':
    main()
