"""Bars and curves, readable in black and white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cp_basicsr.options import OptionError
from cp_basicsr.tools.figures import pyplot, write_figure

from .results import Result, best_rival, time_ratio

FORMATS = ('.png', '.svg')
# Fill and hatching of the bars: rivals are light, we are dark, bf16 and mixes are hatched.
_STYLES = {
    (False, 'fp32'): ('white', ''),
    (False, 'bf16'): ('white', '////'),
    (True, 'fp32'): ('0.35', ''),
    (True, 'bf16'): ('0.35', '////'),
}
_LINES = (('black', 'o', '-'), ('black', 's', '--'), ('0.4', '^', ':'), ('0.4', 'v', '-.'))


def check_format(path: Path) -> None:
    """Refuse a chart that is neither PNG nor SVG, before anything is timed.

    Raises:
        OptionError: naming the path.
    """
    if path.suffix not in FORMATS:
        raise OptionError(f'--chart is {str(path)!r}; allowed: a file name that ends in {" or ".join(FORMATS)}.')


def bars(tables: Sequence[Sequence[Result]], path: Path, caption: str) -> None:
    """Seconds of every contender as horizontal bars with its time ratio beside it, one panel for each table."""
    plt = pyplot()
    columns = min(2, len(tables))
    rows = -(-len(tables) // columns)
    height = max(len(table) for table in tables)
    figure, panels = plt.subplots(
        rows, columns, figsize=(6.5 * columns, rows * (0.9 + 0.28 * height) + 0.3), layout='constrained', squeeze=False
    )
    for panel in panels.flat[len(tables) :]:
        panel.axis('off')
    for panel, table in zip(panels.flat, tables, strict=False):
        _panel(panel, table)
    figure.suptitle(caption, fontsize=8, wrap=True)
    _save(figure, path)


def _panel(panel: Any, table: Sequence[Result]) -> None:
    rival = best_rival(table, 'fp32')
    milliseconds = [1e3 * result.seconds for result in table]
    panel.set_xlim(0, 1.35 * max(milliseconds))
    for row, (result, length) in enumerate(zip(table, milliseconds, strict=True)):
        fill, hatch = _STYLES[result.ours, result.precision]
        panel.barh(row, length, color=fill, hatch=hatch, edgecolor='black', linewidth=0.8)
        ratio = time_ratio(result, rival)
        panel.annotate(
            f'{length:.3g} ms' + ('' if ratio is None else f', {ratio:.2f}x'),
            (length, row),
            xytext=(4, 0),
            textcoords='offset points',
            va='center',
            fontsize=8,
        )
    panel.set_yticks(range(len(table)), [result.name for result in table], fontsize=8)
    panel.invert_yaxis()
    first = table[0]
    panel.set_title(f'{first.network}, input {first.size[1]} x {first.size[0]}', fontsize=10)
    panel.set_xlabel('ms; x: times as fast as the fastest float32 rival', fontsize=8)


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path, caption: str) -> None:
    """Seconds against something, one panel for each thing.

    Args:
        panels: by the label of the horizontal axis, by the name of a curve, its points.
        path: a PNG or SVG.
        caption: what it was measured on.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 4), layout='constrained', squeeze=False)
    for panel, (label, lines) in zip(axes.flat, panels.items(), strict=True):
        for (name, points), (colour, marker, style) in zip(lines.items(), _LINES, strict=False):
            panel.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=style, label=name)
        panel.set(xlabel=label, ylabel='seconds', xlim=(0, None), ylim=(0, None))
        if all(position == int(position) for points in lines.values() for position, _ in points):
            panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(caption, fontsize=8, wrap=True)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    write_figure(figure, path, dpi=130)
    pyplot().close(figure)
