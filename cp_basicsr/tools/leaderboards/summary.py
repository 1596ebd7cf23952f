"""One line for each table: how far below the dense network half the MACs are, by each way of spending them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .markdown import METRICS, table_lines
from .results import Row, Table

# What this project aims at: budget, and dB that the routed network may lose there.
AIMS = {0.5: 0.02, 0.4: 0.05}
CONTROLS = ('random', 'edge', 'informed', 'oracle')


def summary_as_markdown(tables: Iterable[Table]) -> str:
    """dB below the dense network at the budgets of :data:`AIMS`; nothing where no table has a routed row at one.

    Static pruning is interpolated to the MACs of the routed row. In bold: the aim of its budget is reached.
    """
    lines = [_line(table, file) for table in tables for file in table.tile]
    lines = [line for line in lines if any(line[4:])]
    if not lines:
        return ''
    half, *others = AIMS
    head = ['set', 'images', 'network', 'dense, dB', f'routed {half:g} (MACs %)', 'static at these MACs', *CONTROLS]
    return table_lines([*head, *(f'routed {budget:g} (MACs %)' for budget in others)], lines)


def _line(table: Table, file: str) -> list[str]:
    rows = [row for row in table.rows if row.file == file]
    half, *others = AIMS
    routed = _routed(rows, half)
    static = routed and f'{routed.below_dense + routed.over_static:.3f}'
    controls = {row.kind: f'{row.below_dense:.3f}' for row in rows if row.budget == half and row.kind != 'routed'}
    dense = f'{rows[0].quality[table.headline]:.3f} ({METRICS[table.headline]})'
    return [
        table.dataset,
        str(table.images),
        file.removeprefix('test_'),
        dense,
        _judged(routed, half),
        static or '',
        *(controls.get(name, '') for name in CONTROLS),
        *(_judged(_routed(rows, budget), budget) for budget in others),
    ]


def _routed(rows: Sequence[Row], budget: float) -> Row | None:
    return next((row for row in rows if row.kind == 'routed' and row.budget == budget), None)


def _judged(row: Row | None, budget: float) -> str:
    if row is None:
        return ''
    # As it is printed: a table must not call 0.020 missed.
    loss = f'{row.below_dense:.3f}'
    reached = float(loss) <= AIMS[budget]
    return f'{f"**{loss}**" if reached else loss} ({100 * row.macs_share:.1f})'
