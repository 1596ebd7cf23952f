"""Published figures of the same network on the same set, from published.yml."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .results import Row

FILE = Path(__file__).with_name('published.yml')


@functools.cache
def _figures() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding='utf-8'))


def published_rows(
    network: type, options: Mapping[str, Any], name: str, images: int, scale: int, sigma: Any = None
) -> list[Row]:
    """Rows of other people.

    Args:
        network: class of the base network.
        options: its options; what is missing has its default.
        name: of the dataset, as option files call it.
        images: how many the dataset has.
        scale: output pixels for each lq pixel along one side.
        sigma: of the noise that was added, in 8-bit units; None without noise.
    """
    figures = _figures()
    column = next(
        (
            column
            for column, known in figures['sets'].items()
            if name.lower() in (alias.lower() for alias in known['names']) and images == known['images']
        ),
        None,
    )
    signature = inspect.signature(network).parameters
    built = {key: parameter.default for key, parameter in signature.items()} | dict(options)
    rows = []
    for table in figures['tables']:
        if table['network'] != network.__name__ or table['scale'] != scale or table.get('sigma') != sigma:
            continue
        if any(_as_yaml(built.get(key)) != value for key, value in table['options'].items()):
            continue
        rows += [_row(table, row, column) for row in table['rows'] if column in row]
    return rows


def _as_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _row(table: Mapping[str, Any], row: Mapping[str, Any], column: str) -> Row:
    return Row(
        file=table['source'],
        name=row['name'],
        kind='published',
        quality={table['metric']: row[column]},
        macs_share=row.get('macs'),
        flops_share=row.get('flops', {}).get(column),
        convention=table['convention'],
    )
