"""The stages of a training run: which networks learn, for how long, with which optimiser and scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cp_basicsr.options import OptionError, check_choice, check_keys, read_block

STAGE_NAMES = ('dense', 'supernet', 'classifier', 'joint')
JOINT_LR_FACTOR = 0.1
FINAL_LR = 1e-7


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: 'dense', 'supernet', 'classifier' or 'joint'.
        first: its first iteration; BasicSR counts from 1.
        iters: its length.
        optim_g: options of its optimiser, as ``train.optim_g``.
        scheduler: options of its scheduler, as ``train.scheduler``; iterations count from the start of the stage.
        gt_size: side in gt pixels of what it takes of each training patch; None takes the whole patch.
    """

    name: str
    first: int
    iters: int
    optim_g: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    gt_size: int | None = None

    @property
    def last(self) -> int:
        """Its last iteration."""
        return self.first + self.iters - 1

    def progress(self, current_iter: int) -> float:
        """Share of the stage that is done before an iteration: 0 at its first."""
        return (current_iter - self.first) / self.iters


class StagePlan:
    """All stages of a run in order.

    Args:
        train: the ``train`` block of the option file.

    Raises:
        OptionError: stages are missing, unknown or do not add up to ``total_iter``.
    """

    def __init__(self, train: Mapping[str, Any]) -> None:
        self.stages = _read(train)

    def at(self, current_iter: int) -> Stage:
        """The stage of an iteration (the first before the run starts, the last after it ends)."""
        for stage in self.stages:
            if current_iter <= stage.last:
                return stage
        return self.stages[-1]


def _read(train: Mapping[str, Any]) -> list[Stage]:
    entries = train.get('stages')
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise OptionError(
            f'train.stages is {entries!r}; write a list such as [{{name: supernet, iters: 200000}}, '
            '{name: classifier, iters: 50000}, {name: joint, iters: 50000}].'
        )
    stages, first = [], 1
    for index, entry in enumerate(entries):
        where = f'train.stages[{index}]'
        entry = check_keys(entry, ['name', 'iters', 'optim_g', 'scheduler', 'gt_size'], where)
        name = check_choice(entry.get('name'), STAGE_NAMES, f'{where}.name')
        if stages and STAGE_NAMES.index(name) <= STAGE_NAMES.index(stages[-1].name):
            raise OptionError(
                f'{where}.name is {name!r} after {stages[-1].name!r}; the order is {", ".join(STAGE_NAMES)}.'
            )
        iters, gt_size = _positive(entry.get('iters'), f'{where}.iters'), entry.get('gt_size')
        if gt_size is not None:
            _positive(gt_size, f'{where}.gt_size')
        optim_g, scheduler = _optimiser(name, entry, train, where), _scheduler(name, iters, entry, train, where)
        stages.append(Stage(name, first, iters, optim_g, scheduler, gt_size))
        first += iters
    total = train.get('total_iter')
    if first - 1 != total:
        parts = ' + '.join(str(stage.iters) for stage in stages)
        raise OptionError(
            f'train.stages: iters {parts} = {first - 1}, but train.total_iter is {total}; make them equal '
            f'(total_iter: {first - 1}).'
        )
    return stages


def _positive(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f'{where} is {value!r}; allowed: a positive integer.')
    return value


def _optimiser(name: str, entry: Mapping[str, Any], train: Mapping[str, Any], where: str) -> dict[str, Any]:
    form = ', for example {type: Adam, lr: !!float 1e-4}'
    common = read_block(train.get('optim_g') or {}, 'train.optim_g', form)
    own = read_block(entry.get('optim_g') or {}, f'{where}.optim_g', form)
    options = common | own
    if 'type' not in options or isinstance(options.get('lr'), bool) or not isinstance(options.get('lr'), (int, float)):
        raise OptionError(
            f'train.optim_g and {where}.optim_g together are {options!r}; they need a type and a learning rate, for '
            'example {type: Adam, lr: !!float 1e-4} (YAML reads 1e-4 without !!float as text).'
        )
    if name == 'joint' and 'lr' not in own:
        options['lr'] *= JOINT_LR_FACTOR
    return options


def _scheduler(name: str, iters: int, entry: Mapping[str, Any], train: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The stage's own, else ``train.scheduler`` for the supernet, else a cosine to zero over the stage.

    Annealing to zero gave the last 0.9 dB of a 2:4 run in our trials.
    """
    given = entry.get('scheduler') or (train.get('scheduler') if name == 'supernet' else None)
    if given is None:
        return {'type': 'CosineAnnealingRestartLR', 'periods': [iters], 'restart_weights': [1], 'eta_min': FINAL_LR}
    where = f'{where}.scheduler' if entry.get('scheduler') else 'train.scheduler'
    given = read_block(given, where, ' with a type, for example CosineAnnealingRestartLR', typed=True)
    # BasicSR's cosine fails behind its last period; it counts from 0.
    if given['type'] == 'CosineAnnealingRestartLR':
        periods = given.get('periods')
        if not isinstance(periods, Sequence) or isinstance(periods, str):
            raise OptionError(f'{where}.periods is {periods!r}; write a list, for example `periods: [{iters}]`.')
        if sum(periods) < iters - 1:
            raise OptionError(
                f'{where}.periods is {periods!r}, which ends before the {iters} iterations of stage {name}; write '
                f'`periods: [{iters}]`.'
            )
    return given
