"""Measured limits as tables for people, and as a record for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .limits import AROUND, LevelLimits, Limits
from .results import time_ratio
from .stages import STAGES

NOTES = """\
- *network*: Python, and the copy of the output that a network gives away; *call*: preparing the job and waking threads;
  others: differences between the layer and the same without its last stages. They add up to *ms in all*.
- *multiplied*: by the code that runs: a pattern's own code takes kept weights only, Winograd's 36 for 4 x 4 outputs,
  whatever the mask. *at peak*: how long that takes at the machine's peak; *reached*: that as a share of *products*.
- *loads at peak*: how long loading the inputs of the products takes; a weight is loaded for each multiply-add besides.
- *at most*: time of the fastest float32 rival / *at peak*, as if nothing else took time. *needs*: share of the peak at
  which the whole run would have a time ratio as high as its MACs ratio; above 100, this code cannot."""


def as_markdown(measured: Limits) -> str:
    """The tables of one input."""
    parts = [_machine(measured), _stages(measured), _products(measured)]
    if measured.rivals:
        parts.append(_rivals(measured))
    if measured.rival is not None:
        parts.append(_ratios(measured))
    return '\n\n'.join([*parts, NOTES])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Markdown; the first ``texts`` columns are words, the others figures."""
    lines = [head, ['---'] * texts + ['---:'] * (len(head) - texts), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _machine(measured: Limits) -> str:
    rows = [
        [rate.name, f'{rate.per_second / 1e9:.{1 if rate.per_second > 1e10 else 2}f} G{rate.unit}/s']
        + [f'{1e3 * rate.seconds:.2f}' if rate.unit == 'B' else '']
        for rate in measured.rates
    ]
    return _table(['limit of the machine', 'measured', 'ms'], rows, 1)


def _first(level: LevelLimits) -> list[str]:
    return [level.result.precision, level.label]


def _stages(measured: Limits) -> str:
    names = [AROUND, *STAGES]
    rows = [
        [
            *_first(level),
            level.work.code,
            _ms(level.result.seconds),
            *(_ms(level.stages[name]) if name in level.stages else '' for name in names),
        ]
        for level in measured.levels
    ]
    return _table(['precision', 'level', 'code', 'ms in all', *names], rows, 3)


def _products(measured: Limits) -> str:
    head = ['precision', 'level', 'GMAC', 'multiplied', 'at peak, ms', 'products, ms', 'reached %', 'loads at peak, ms']
    rows = [
        [
            *_first(level),
            f'{level.result.macs / 1e9:.3f}',
            f'{level.work.macs / 1e9:.3f}',
            _ms(level.limit),
            _ms(level.stages['products']),
            _percent(level.reached),
            _ms(level.loads_limit),
            f'{level.work.code_bytes / 1024:.0f}' if level.work.code_bytes else '',
        ]
        for level in measured.levels
    ]
    return _table([*head, 'code, KiB'], rows, 2)


def _rivals(measured: Limits) -> str:
    rows = []
    for rival in measured.rivals:
        rate = f'{rival.macs / rival.seconds / 1e9:.1f}'
        name = f'**{rival.name}**' if rival is measured.rival else rival.name
        share = _percent(measured.share_of_peak(rival))
        rows.append([name, rival.precision, _ms(rival.seconds), rate, share])
    return _table(['dense rival', 'precision', 'ms', 'GMAC/s', '% of the peak'], rows, 2)


def _ratios(measured: Limits) -> str:
    rival = measured.rival
    rows = [
        [
            *_first(level),
            f'{level.result.macs_ratio:.2f}',
            f'{time_ratio(level.result, rival):.2f}x',
            f'{level.most(rival):.2f}x',
            _percent(level.needed(rival)),
        ]
        for level in measured.levels
    ]
    return _table(['precision', 'level', 'MACs ratio', 'time ratio', 'at most', 'needs, %'], rows, 2)


def _ms(seconds: float) -> str:
    return f'{1e3 * seconds:.2f}'


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.0f}'


def as_record(measured: Limits) -> dict[str, Any]:
    """Every figure, for JSON."""
    record = asdict(measured)
    for rate, each in zip(measured.rates, record['rates'], strict=True):
        each['per_second'] = rate.per_second
    for rival, each in zip(measured.rivals, record['rivals'], strict=True):
        each['share_of_peak'] = measured.share_of_peak(rival)
    best = measured.rival
    for level, each in zip(measured.levels, record['levels'], strict=True):
        each['seconds'], each['reached'] = level.result.seconds, level.reached
        if best is not None:
            each |= {'time_ratio': time_ratio(level.result, best), 'most': level.most(best)}
            each |= {'needed': level.needed(best), 'rival': best.name}
    return record
