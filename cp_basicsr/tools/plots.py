"""Plots of the leaderboard's result files and of BasicSR's training logs, as PNG and SVG.

    python -m cp_basicsr.tools.plots results/leaderboard/results.json -o results/plots
    python -m cp_basicsr.tools.plots experiments/CP_SRVGG_x2_DIV2K/train_*.log -o results/plots

A result file gives, for each dataset, PSNR against MACs and against seconds, and the level usage at each budget. A log
gives the losses and the validated PSNR against iterations. Markers, dashes and hatches tell series apart in black and
white too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cp_basicsr import autoload
from cp_basicsr.options import OptionError
from cp_basicsr.tools.figures import pyplot, write_figure
from cp_basicsr.tools.report import file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cp_basicsr.tools.leaderboards.results import Row, Table
    from cp_basicsr.tools.training_log import TrainingLog

FORMATS = ('png', 'svg')
SIZE = (6.4, 4.2)
# Marker, line and gray or colour of each kind of row. The colours differ in lightness.
STYLES = {
    'static': ('s', '-', 'black'),
    'routed': ('o', '-', 'tab:blue'),
    'oracle': ('^', '--', 'tab:green'),
    'informed': ('v', '--', 'tab:olive'),
    'edge': ('D', '-.', 'tab:orange'),
    'random': ('x', ':', 'tab:gray'),
    'published': ('*', '', 'tab:red'),
}
LINES = ('-', '--', ':', '-.')
MARKERS = 'osD^vx*P'
HATCHES = ('', '//', 'xx', '..', '\\\\', '++', 'oo', '--')


def plot_files(paths: Sequence[Path], out: Path) -> list[Path]:
    """Plot result files and logs.

    Args:
        paths: ``results.json`` files of the leaderboard, and training logs of BasicSR.
        out: folder for the plots, made if missing.

    Returns:
        The files written.

    Raises:
        OptionError: a file is neither.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in paths:
        written += plot_results(path, out) if path.suffix == '.json' else plot_log(path, out)
    return written


def plot_results(path: Path, out: Path) -> list[Path]:
    """Plot each table of a result file; see :func:`plot_files`."""
    autoload.activate()
    from cp_basicsr.tools.leaderboards.readme import read_tables

    written = []
    for table in read_tables([path]):
        name = file_name(table.dataset)
        machine = '; '.join(table.machine)
        for quantity, value, label in (
            ('macs', _macs, 'MACs, % of dense (classifier included)'),
            ('seconds', seconds_of, f'seconds for one image\n{machine}'),
        ):
            figure, axes = _new_axes()
            draw_quality(axes, table, value, label)
            written += _save(figure, out / f'{name}_psnr_{quantity}')
        if any(row.kind == 'routed' for row in table.rows):
            rows = [row for row in table.rows if row.kind == 'routed']
            groups = [(row.file, f'{row.budget:g}', row.labels, row.usage) for row in rows]
            written += _save(_usage(table, groups, 'budget, share of the dense MACs'), out / f'{name}_usage')
        for budget in dict.fromkeys(bin_.budget for bin_ in table.sigma):
            bins = [bin_ for bin_ in table.sigma if bin_.budget == budget]
            labels = {row.file: row.labels for row in table.rows}
            groups = [(bin_.file, f'{bin_.low:.0f}-{bin_.high:.0f}', labels[bin_.file], bin_.usage) for bin_ in bins]
            figure = _usage(table, groups, f'sigma of the noise; budget {budget:g}')
            written += _save(figure, out / f'{name}_usage_sigma_{budget:g}')
    return written


def plot_log(path: Path, out: Path) -> list[Path]:
    """Plot a training log; see :func:`plot_files`."""
    from cp_basicsr.tools.training_log import read_training_log

    log = read_training_log(path)
    figures = {
        'losses': _curves(log, log.losses, 'loss', log_scale=True),
        'routing': _curves(log, log.observed, 'share'),
        'psnr': _curves(log, {name: log.validated[name] for name in log.validated if 'psnr' in name}, 'PSNR, dB'),
    }
    return [
        file
        for kind, figure in figures.items()
        if figure is not None
        for file in _save(figure, out / f'{path.stem}_{kind}')
    ]


def _macs(row: Row) -> float | None:
    return None if row.macs_share is None else 100 * row.macs_share


def seconds_of(row: Row) -> float | None:
    """Seconds for one image. Controls have none: no classifier ran, and their maps were at hand."""
    return row.seconds if row.kind in ('static', 'routed', 'published') else None


def _new_axes() -> tuple[Figure, Axes]:
    return pyplot().subplots(figsize=SIZE, layout='constrained')


def draw_quality(axes: Axes, table: Table, value: Callable[[Row], float | None], label: str) -> None:
    """Headline PSNR of every row; rows of one kind and option file are joined.

    Args:
        axes: where.
        table: of a result file.
        value: what it is drawn against; rows without it are left out.
        label: of the horizontal axis.
    """
    from cp_basicsr.tools.leaderboards.markdown import METRICS

    files = list(dict.fromkeys(row.file for row in table.rows if row.kind != 'published'))
    for kind, (marker, line, colour) in STYLES.items():
        for file in files if kind != 'published' else [None]:
            rows = [row for row in table.rows if row.kind == kind and file in (row.file, None)]
            points = sorted(
                (value(row), row.quality[table.headline])
                for row in rows
                if value(row) is not None and table.headline in row.quality
            )
            if not points:
                continue
            index = files.index(file) if file else 0
            name = kind if len(files) == 1 or file is None else f'{file}: {kind}'
            filled = colour if index == 0 or marker == 'x' else 'white'
            axes.plot(
                *zip(*points, strict=True),
                marker=marker,
                linestyle=line,
                color=colour,
                markerfacecolor=filled,
                linewidth=1 + 0.8 * (kind == 'routed'),
                label=name,
            )
    for row in table.rows:
        if row.kind == 'static' and value(row) is not None:
            point = (value(row), row.quality[table.headline])
            name = row.name.removeprefix('static ')
            axes.annotate(name, point, textcoords='offset points', xytext=(5, -12), fontsize='small', clip_on=True)
    axes.margins(0.1)
    axes.set(xlabel=label, ylabel=f'{METRICS[table.headline]}, dB', title=table.dataset)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')


def _usage(table: Table, groups: Sequence[tuple[str, str, list[str], list[float]]], label: str) -> Figure:
    """Stacked bars: the share of the tiles at each level, for each (option file, name, levels, usage)."""
    figure, axes = _new_axes()
    several = len({file for file, *_ in groups}) > 1
    names = [f'{file}\n{name}' if several else name for file, name, *_ in groups]
    most = max(len(usage) for *_, usage in groups)
    alike = all(labels == groups[0][2] for _, _, labels, _ in groups)
    labels = groups[0][2] if alike else [f'level {k}' for k in range(most)]
    places, below = range(len(groups)), [0.0] * len(groups)
    for level in range(most):
        shares = [100 * usage[level] if level < len(usage) else 0 for *_, usage in groups]
        gray = str(0.95 - 0.6 * level / max(most - 1, 1))
        axes.bar(
            places, shares, bottom=below, color=gray, edgecolor='black', hatch=HATCHES[level % 8], label=labels[level]
        )
        below = [low + share for low, share in zip(below, shares, strict=True)]
    # Names by themselves would be taken for numbers, with a warning, where they are budgets.
    axes.set_xticks(places, names)
    axes.set(xlabel=label, ylabel='tiles, %', ylim=(0, 100), title=table.dataset)
    axes.legend(fontsize='small', loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def _curves(
    log: TrainingLog, curves: dict[str, list[tuple[int, float]]], label: str, log_scale: bool = False
) -> Figure | None:
    """Lines over iterations, with the stages marked; None where there is nothing to draw."""
    if not curves:
        return None
    figure, axes = _new_axes()
    for index, (name, points) in enumerate(sorted(curves.items())):
        axes.plot(
            *zip(*points, strict=True),
            linestyle=LINES[index % len(LINES)],
            marker=MARKERS[index % len(MARKERS)],
            markevery=max(1, len(points) // 8),
            markersize=4,
            linewidth=1,
            label=name,
        )
    for name, first in log.stages:
        axes.axvline(first, color='black', linewidth=0.6)
        above = {'xycoords': ('data', 'axes fraction'), 'xytext': (2, -10), 'textcoords': 'offset points'}
        axes.annotate(name, (first, 1), fontsize='small', **above)
    if log_scale and all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale('log')
    axes.set(xlabel='iteration', ylabel=label, title=log.name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='x-small', loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def _save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure in every format."""
    written = []
    with pyplot().rc_context({'svg.hashsalt': 'cp_basicsr'}):  # equal plots give equal files
        for ending in FORMATS:
            path = stem.with_name(f'{stem.name}.{ending}')
            write_figure(figure, path, dpi=150, metadata={'Date': None} if ending == 'svg' else {})
            written.append(path)
    pyplot().close(figure)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE', help='results.json of the leaderboard, or a log')
    parser.add_argument('-o', '--out', type=Path, required=True, metavar='DIR', help='folder for the plots')
    options = parser.parse_args(arguments)
    try:
        written = plot_files(options.files, options.out)
    except (OptionError, OSError) as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(''.join(f'{path}\n' for path in written))


if __name__ == '__main__':
    main()
