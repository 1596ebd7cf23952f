"""A profile as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from .measuring import LayerProfile, LevelProfile, Profile


def as_text(profile: Profile) -> str:
    """One table for each level, what stands in the way of faster paths, and totals."""
    parts = []
    reasons: dict[str, str] = {}
    for level in profile.levels:
        parts.append(f'Level {level.label}\n{_table(_layer_rows(level, reasons))}')
    if profile.untraced:
        parts.append(f'Layers run one by one, with nothing fused: {profile.untraced}.')
    if reasons:
        parts.append('\n'.join(f'({mark}) {reason}' for reason, mark in reasons.items()))
    if profile.routed is not None:
        parts.append(profile.routed.as_text())
    parts.append(_table(_total_rows(profile)))
    return '\n\n'.join(parts)


def _layer_rows(level: LevelProfile, reasons: dict[str, str]) -> list[list[str]]:
    rows = [['layer', 'weight', 'output', 'density', 'weights', 'MMACs', 'ms', 'path', 'with']]
    rows += [_layer_row(layer, reasons) for layer in level.layers]
    between = ['between the layers', '', '', '', '', f'{level.other_macs / 1e6:.2f}', f'{level.rest:.3f}', '', '']
    return [*rows, between]


def _layer_row(layer: LayerProfile, reasons: dict[str, str]) -> list[str]:
    path = layer.path
    if layer.reason:
        path += f' ({reasons.setdefault(layer.reason, _mark(len(reasons)))})'
    return [
        layer.name,
        'x'.join(map(str, layer.weight)),
        'x'.join(map(str, layer.output)),
        f'{100 * layer.density:.0f} %',
        f'{layer.weights:,}',
        f'{layer.macs / 1e6:.2f}',
        '-' if layer.milliseconds is None else f'{layer.milliseconds:.3f}',
        path,
        layer.fused,
    ]


def _mark(index: int) -> str:
    return chr(ord('a') + index) if index < 26 else str(index)


def _total_rows(profile: Profile) -> list[list[str]]:
    rows = [['level', 'weights', 'MMACs', 'of dense', 'ms', 'speedup']]
    plain = profile.pytorch_milliseconds
    for level in profile.levels:
        share = f'{100 * level.share:.1f} %'
        times = [f'{level.milliseconds:.2f}', f'{plain / level.milliseconds:.2f}x']
        rows.append([level.label, f'{level.weights:,}', f'{level.macs / 1e6:.2f}', share, *times])
    if (routed := profile.routed) is not None:
        times = [f'{routed.milliseconds:.2f}', f'{plain / routed.milliseconds:.2f}x']
        rows.append([routed.name, '', f'{routed.macs / 1e6:.2f}', f'{100 * routed.share:.1f} %', *times])
    classifier = [f'{profile.classifier_macs / 1e6:.2f}', '', f'{profile.classifier_milliseconds:.2f}', '']
    return [*rows, ['classifier', '', *classifier], ['dense, plain PyTorch', '', '', '', f'{plain:.2f}', '1.00x']]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    words = [rows[0].index(name) for name in ('layer', 'level', 'path', 'with') if name in rows[0]]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)
