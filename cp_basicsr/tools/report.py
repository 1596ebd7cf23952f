"""Rows of a comparison as a Markdown table and a plot, and what they were measured on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Row:
    """One line of the table, mean over the images of a set.

    Attributes:
        name: what ran.
        kind: 'static', 'routed' or 'random'; the densest level is 'static' too.
        quality: value of each metric of the option file.
        macs_share: MACs as a fraction of the dense network's, classifier included.
        seconds: for one image, on this machine.
        usage: share of the tiles at each level.
    """

    name: str
    kind: str
    quality: dict[str, float]
    macs_share: float
    seconds: float
    usage: list[float]


def as_markdown(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """The table, one row a line; ``labels`` name the levels, sparse to dense."""
    metrics = [name for name in rows[0].quality if name != 'macs']
    head = ['', *(name.upper() for name in metrics), 'MACs %', 's / image', *(f'tiles {label}' for label in labels)]
    lines = [head, ['---', *['---:'] * (len(head) - 1)]]
    for row in rows:
        quality = [f'{row.quality[name]:.{2 if name.startswith("psnr") else 4}f}' for name in metrics]
        usage = [f'{100 * share:.0f} %' for share in row.usage]
        lines.append([row.name, *quality, f'{100 * row.macs_share:.1f}', f'{row.seconds:.3f}', *usage])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """PSNR against MACs as a PNG: static levels as squares, routed and random routes as lines."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    metric = next(name for name in rows[0].quality if name != 'macs')
    figure, axes = plt.subplots(figsize=(6, 4), layout='constrained')
    styles = {'static': ('s', '', 'black'), 'routed': ('o', '-', 'tab:blue'), 'random': ('x', '--', 'tab:gray')}
    for kind, (marker, line, colour) in styles.items():
        points = sorted((100 * row.macs_share, row.quality[metric]) for row in rows if row.kind == kind)
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, linestyle=line, color=colour, label=kind)
    for row in rows:
        if row.kind == 'static':
            axes.annotate(
                row.name, (100 * row.macs_share, row.quality[metric]), textcoords='offset points', xytext=(4, -12)
            )
    axes.set(xlabel='MACs, % of dense (classifier included)', ylabel=metric.upper(), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(f'.{path.name}')
    figure.savefig(temporary, format='png', dpi=150)
    plt.close(figure)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(f'.{path.name}')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def machine() -> str:
    """What the seconds were measured on."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f'{_processor()}, {torch.get_num_threads()} threads'
    )
    return f'PyTorch {torch.__version__}, {device}, float32, reference path, batch 1'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return 'CPU'
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), 'CPU')
