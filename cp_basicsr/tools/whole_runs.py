"""Whole training and test runs, as a user would start them: option files written down, commands run, logs kept."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from cp_basicsr.tools.report import write_text
from cp_basicsr.tools.stopping import termination_as_exit

ITERATION = re.compile(r'epoch:.*?iter:\s*([\d,]+)')
LAST_LINES = 20  # of a log, shown when a command failed


class RunError(RuntimeError):
    """A command failed; the message names it, its log, and what it said last."""


def write_options(options: Mapping[str, Any], path: Path) -> Path:
    """Write an option file and return its path."""
    write_text(path, yaml.safe_dump(dict(options), sort_keys=False))
    return path


def test_options(
    train: Mapping[str, Any], datasets: Mapping[str, Any], checkpoint: str = 'net_g_latest'
) -> dict[str, Any]:
    """The test option file that belongs to a training: its network, its way of routing, a checkpoint it wrote.

    Args:
        train: the training's option file.
        datasets: blocks of the test sets, by key.
        checkpoint: file below the experiment's ``models``, without its ending.
    """
    keep = ('model_type', 'scale', 'num_gpu', 'manual_seed', 'network_g')
    path = {'pretrain_network_g': str(Path('experiments') / train['name'] / 'models' / f'{checkpoint}.pth')}
    if train['train'].get('ema_decay'):
        path['param_key_g'] = 'params_ema'
    return {
        'name': train['name'],
        **{key: train[key] for key in keep},
        'datasets': dict(datasets),
        'val': {**train['val'], 'save_img': True, 'suffix': None},
        'path': {**path, 'strict_load_g': True},
    }


def shortened(train: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """A ``train`` block with the iterations of each stage divided by ``factor``, two at least."""
    stages = [{**stage, 'iters': max(stage['iters'] // factor, 2)} for stage in train['stages']]
    return {**train, 'stages': stages, 'total_iter': sum(stage['iters'] for stage in stages)}


def run_command(command: str, options: Path, log_file: Path, iterations: int, *arguments: str) -> None:
    """Run ``python -m cp_basicsr.COMMAND`` with a progress bar, its output in a log file.

    Args:
        command: ``train`` or ``test``.
        options: the option file.
        log_file: where its output goes.
        iterations: of the whole run, for the progress bar.
        arguments: further ones of BasicSR's command line.

    Raises:
        RunError: it failed.
    """
    call = [sys.executable, '-m', f'cp_basicsr.{command}', '-opt', str(options), *arguments]
    with (
        termination_as_exit(),
        log_file.open('a', buffering=1) as log,
        tqdm(total=iterations, unit='it') as progress,
    ):
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for line in process.stdout:
                log.write(line)
                if found := ITERATION.search(line):
                    progress.update(int(found[1].replace(',', '')) - progress.n)
            process.wait()
        finally:
            process.terminate()  # nothing, once it has ended; else it would train on, beside the next run of the same
            process.wait()
    if process.returncode:
        last = ''.join(log_file.read_text().splitlines(keepends=True)[-LAST_LINES:])
        raise RunError(f'{" ".join(call)} failed with status {process.returncode}; its log is {log_file}:\n{last}')
