"""Curves from a training log that BasicSR wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from cp_basicsr.options import OptionError

# BasicSR's MessageLogger: [name..][epoch:  0, iter:   1,250, lr:(1.000e-04,)] [eta: ...] l_pix: 1.2345e-02 ...
STEP = re.compile(r'\[epoch:.*?iter:\s*([\d,]*\d), lr:\(.*?\)\]')
VALUE = re.compile(r'(\w+): (-?\d\.\d+e[+-]\d+|nan|inf)')
STAGE = re.compile(r'Stage (\w+): iterations (\d+) to \d+')
VALIDATION = re.compile(r'Validation (\S+)\s*$')
METRIC = re.compile(r'^\s+# (\w+): (-?[\d.]+|inf|nan)')

Points = list[tuple[int, float]]


@dataclass
class TrainingLog:
    """What a log holds, each curve as (iteration, value) in order of iterations.

    Attributes:
        name: of the file.
        stages: name and first iteration of each.
        losses: by name (``l_...``).
        observed: what else was logged: expected cost, level usage, mask flips.
        validated: by ``DATASET METRIC``.
    """

    name: str
    stages: list[tuple[str, int]] = field(default_factory=list)
    losses: dict[str, Points] = field(default_factory=dict)
    observed: dict[str, Points] = field(default_factory=dict)
    validated: dict[str, Points] = field(default_factory=dict)


def read_training_log(path: Path) -> TrainingLog:
    """Read a log; of a run that was resumed within one file, what was done twice counts once, the last time.

    Raises:
        OptionError: the file cannot be read or holds no iteration of a training.
    """
    try:
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as error:
        raise OptionError(f'{path}: {error.strerror}. Give a results.json or a training log.') from error
    curves: dict[str, dict[str, dict[int, float]]] = {'losses': {}, 'observed': {}, 'validated': {}}
    stages: dict[str, int] = {}
    iteration, dataset = 0, None
    for line in lines:
        if found := STEP.search(line):
            iteration, dataset = int(found[1].replace(',', '')), None
            for name, value in VALUE.findall(line[found.end() :]):
                kind = 'losses' if name.startswith('l_') else 'observed'
                curves[kind].setdefault(name, {})[iteration] = float(value)
        elif found := STAGE.search(line):
            stages[found[1]] = int(found[2])
        elif found := VALIDATION.search(line):
            dataset = found[1]
        elif dataset and (found := METRIC.match(line)):
            curves['validated'].setdefault(f'{dataset} {found[1]}', {})[iteration] = float(found[2])
    if not iteration:
        raise OptionError(f'{path} holds no iteration of a training; give a log that BasicSR wrote (train_*.log).')
    ordered = {kind: {name: sorted(points.items()) for name, points in named.items()} for kind, named in curves.items()}
    return TrainingLog(path.stem, list(stages.items()), **ordered)
