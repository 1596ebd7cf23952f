"""The runs of runs.yml as option files for training and testing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cp_basicsr.option_files import option_file
from cp_basicsr.options import check_choice, check_keys
from cp_basicsr.routing.controls import DEFAULT_CONTROLS

FILE = Path(__file__).with_name('runs.yml')
KEYS = ('options', 'changes', 'own', 'noise', 'sets', 'images', 'budgets', 'controls', 'dial', 'curve')


@dataclass(frozen=True)
class Curve:
    """What quality against training is looked at with.

    Attributes:
        set: the test set.
        images: the first so many of it.
        checkpoints: iterations whose checkpoints are tested.
    """

    set: str
    images: int
    checkpoints: Sequence[int]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: its name, also of its experiment.
        train: options of the training.
        sets: blocks of the test sets, by name.
        images: only the first so many of each are tested; None takes all.
        budgets: shares of the dense MACs that are tested.
        controls: of :data:`cp_basicsr.routing.controls.CONTROLS`.
        dial: whether ten budgets more are tested.
        curve: None where no curve is drawn.
    """

    name: str
    train: dict[str, Any]
    sets: dict[str, dict[str, Any]]
    images: int | None
    budgets: Sequence[float]
    controls: Sequence[str]
    dial: bool
    curve: Curve | None


def run_names(file: Path = FILE) -> list[str]:
    """The runs that there are."""
    return list(_read(file)['runs'])


def read_run(name: str, file: Path = FILE) -> Run:
    """A run by its name.

    Raises:
        OptionError: there is none of this name, or what it says of itself has an unknown key, change, set or file.
    """
    content = _read(file)
    where = f'{file.name}: runs.{check_choice(name, content["runs"], "run")}'
    block = check_keys(content['runs'][name], KEYS, where)
    train = yaml.safe_load(option_file(block['options']).read_text(encoding='utf-8'))
    for change in block['changes']:
        train = merged(train, content['changes'][check_choice(change, content['changes'], f'{where}.changes')])
    train = merged(train, block.get('own', {}))
    train['name'] = name
    noise = block.get('noise')
    if noise:
        for dataset in (train['datasets']['train'], train['datasets']['val'], train['train']['calibration']['dataset']):
            dataset |= noise
    scale = train['scale']
    sets = {}
    for key in block['sets']:
        known = content['sets'][check_choice(key, content['sets'], f'{where}.sets')]
        sets[key] = _scaled({'name': key, **known, **(noise or {}), 'io_backend': {'type': 'disk'}}, scale)
    return Run(
        name,
        _scaled(train, scale),
        sets,
        block.get('images'),
        block['budgets'],
        block.get('controls', DEFAULT_CONTROLS),
        block.get('dial', False),
        Curve(**block['curve']) if block.get('curve') else None,
    )


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``change``; blocks in both are merged key by key, unless they name another type."""
    result = dict(base)
    for key, value in change.items():
        there = base.get(key)
        both = isinstance(value, Mapping) and isinstance(there, Mapping)
        result[key] = (
            merged(there, value) if both and value.get('type', there.get('type')) == there.get('type') else value
        )
    return result


def _scaled(value: Any, scale: int) -> Any:
    """``{scale}`` filled in, in every text."""
    if isinstance(value, Mapping):
        return {key: _scaled(part, scale) for key, part in value.items()}
    if isinstance(value, list):
        return [_scaled(part, scale) for part in value]
    return value.replace('{scale}', str(scale)) if isinstance(value, str) else value


def _read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding='utf-8'))
