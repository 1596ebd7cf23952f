"""Make results of README.md again: train, test against all controls, write the tables.

    python -m cp_basicsr.tools.reproduce --list
    python -m cp_basicsr.tools.reproduce M6C40_x2 CDnCNN_s25 --out results/reproduced

What a run is made of stands in cp_basicsr/tools/reproducing/runs.yml; datasets/README.md says how to lay out its data.
Each gets a folder below --out with its option files, logs, records, results.json and results.md; checkpoints lie in
experiments/NAME. The same command goes on after an interruption. --short trains a hundredth and tests one image of each
set, to see that everything is in place.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cp_basicsr import autoload
from cp_basicsr.tools import leaderboard, whole_runs
from cp_basicsr.tools.arguments import read_count
from cp_basicsr.tools.leaderboards.settings import Settings
from cp_basicsr.tools.reproducing.plan import Run, read_run, run_names
from cp_basicsr.tools.whole_runs import RunError, run_command, test_options, write_options

SHORT_FACTOR = 100

log = logging.getLogger('cp_basicsr.reproduce')


def reproduce(run: Run, out: Path) -> Path:
    """Train and test one run, what is done already left out; the path of its results.

    Args:
        run: the run.
        out: its folder.

    Raises:
        RunError: the training failed.
        BudgetError, CheckpointError, DataError, OptionError, PatternError: the test cannot be run.
    """
    out.mkdir(parents=True, exist_ok=True)
    iterations = run.train['train']['total_iter']
    models = Path('experiments') / run.name / 'models'
    file = write_options(run.train, out / 'train.yml')
    if not (models / 'net_g_latest.pth').is_file():  # written at the end
        log.info('%s: training, %d iterations; log: %s', run.name, iterations, out / 'train.log')
        run_command('train', file, out / 'train.log', iterations, '--auto_resume')
    log.info('%s: testing', run.name)
    test = write_options(test_options(run.train, run.sets), out / f'test_{run.name}.yml')
    settings = Settings(run.budgets, run.controls, dial=run.dial, images=run.images)
    leaderboard.run([test], out, settings)
    if run.curve:
        _curve(run, out / 'curve')
    return out / 'results.json'


def _curve(run: Run, out: Path) -> None:
    """Quality of every level at some checkpoints, as one table."""
    out.mkdir(exist_ok=True)
    sets = {run.curve.set: run.sets[run.curve.set]}
    files = [
        write_options(test_options(run.train, sets, f'net_g_{iteration}'), out / f'{run.name}_after_{iteration}.yml')
        for iteration in run.curve.checkpoints
    ]
    leaderboard.run(files, out, Settings((), (), images=run.curve.images))


def shortened(run: Run) -> Run:
    """The same run with a hundredth of its training, under another name."""
    train = whole_runs.shortened(run.train['train'], SHORT_FACTOR) | {'classifier_patches': 8}
    options: dict[str, Any] = {**run.train, 'name': f'{run.name}_short', 'train': train}
    return replace(run, name=options['name'], train=options, images=1, curve=None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='*', metavar='RUN', help='default: all')
    parser.add_argument(
        '--out', type=Path, default=Path('results/reproduced'), metavar='DIR', help='default: %(default)s'
    )
    parser.add_argument('--list', action='store_true', help='say which runs there are')
    parser.add_argument('--short', action='store_true', help='a hundredth of the training, one image of each set')
    parser.add_argument('--threads', type=read_count, metavar='N', help="of each process (default: PyTorch's choice)")
    options = parser.parse_args(arguments)
    if options.list:
        sys.stdout.write('\n'.join(run_names()) + '\n')
        return
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    if options.threads:
        torch.set_num_threads(options.threads)
    autoload.activate()
    try:
        for run in [read_run(name) for name in options.runs or run_names()]:
            run = shortened(run) if options.short else run
            results = reproduce(run, options.out / run.name)
            log.info('%s: %s', run.name, results.resolve())
    except (*leaderboard.ERRORS, RunError) as error:
        raise SystemExit(str(error)) from error


if __name__ == '__main__':
    main()
