"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .results import Row, Table

METRICS = {'psnr_y': 'PSNR-Y', 'psnr_rgb': 'PSNR-RGB', 'psnr_gray': 'PSNR', 'ssim': 'SSIM'}
NOTHING = ''


def as_markdown(tables: Iterable[Table]) -> str:
    """For each table a heading, what was measured on what, rows, dial, notes, conventions of published figures."""
    return '\n'.join(_section(table) for table in tables)


def _section(table: Table) -> str:
    files = list(dict.fromkeys(row.file for row in table.rows if row.kind != 'published'))
    heading = f'### {table.dataset}, {", ".join(files)}'
    parts = [heading, _circumstances(table), rows_as_markdown(table, several=len(files) > 1)]
    if table.dial:
        parts.append(dial_as_markdown(table, several=len(files) > 1))
    if table.sigma:
        parts.append(sigma_as_markdown(table, several=len(files) > 1))
    conventions = dict.fromkeys(row.convention for row in table.rows if row.convention)
    notes = [*table.notes, *(f'Published: {convention}' for convention in conventions)]
    if notes:
        parts.append('\n'.join(f'- {note}' for note in dict.fromkeys(notes)))
    return '\n\n'.join(parts) + '\n'


def _circumstances(table: Table) -> str:
    tiles = {file: f'{tile} x {tile} lq pixels' if tile else 'whole images' for file, tile in table.tile.items()}
    routed = ' and '.join(dict.fromkeys(tiles.values()))
    if table.protocol == 'classsr':
        routed = '32 x 32 patches, stride 28 (ClassSR protocol)'
    compared = METRICS[table.headline]
    return (
        f'{table.images} image{"s" if table.images > 1 else ""}; {"; ".join(table.machine)}; tiles: {routed}; '
        f'compared by {compared}.'
    )


def rows_as_markdown(table: Table, several: bool) -> str:
    """The rows; ``several`` names each row's option file."""
    metrics = [name for name in METRICS if any(name in row.quality for row in table.rows)]
    labels = list(dict.fromkeys(tuple(row.labels) for row in table.rows if row.labels))
    columns: dict[str, Callable[[Row], str]] = {
        '': lambda row: f'{row.file}: {row.name}' if several or row.kind == 'published' else row.name
    }
    for metric in metrics:
        digits = 4 if metric == 'ssim' else 3
        columns[METRICS[metric]] = lambda row, metric=metric, digits=digits: _number(row.quality.get(metric), digits)
    columns['MACs %'] = lambda row: _number(_percent(row.macs_share), 1)
    if any(row.flops is not None for row in table.rows):
        columns['FLOPs (M)'] = lambda row: _number(row.flops and row.flops / 1e6, 0)
    if any(row.flops_share is not None for row in table.rows):
        columns['FLOPs %'] = lambda row: _number(_percent(row.flops_share), 0)
    columns['s / image'] = lambda row: _number(row.seconds, 3)
    usage = f'tiles at {" / ".join(labels[0])}, %' if len(labels) == 1 else 'tiles at each level, %'
    columns[usage] = lambda row: ' / '.join(f'{100 * share:.0f}' for share in row.usage)
    if any(row.below_dense is not None for row in table.rows):
        columns['below dense, dB'] = lambda row: _number(row.below_dense, 3)
    if any(row.budget_error is not None for row in table.rows):
        columns['budget error'] = lambda row: _number(_percent(row.budget_error), 1, sign=True)
        columns['over static, dB'] = lambda row: _number(row.over_static, 3, sign=True)
    if any(row.gap_closed is not None for row in table.rows):
        columns['gap closed, %'] = lambda row: _number(_percent(row.gap_closed), 0)
    return table_lines(list(columns), [[cell(row) for cell in columns.values()] for row in table.rows])


def dial_as_markdown(table: Table, several: bool) -> str:
    """Requested against measured MACs."""
    head = ['budget, %', 'measured, %', 'error', 'worst image', METRICS[table.headline]]
    lines = [
        [
            (f'{point.file}: ' if several else '') + f'{100 * point.requested:.0f}',
            f'{100 * point.measured:.1f}',
            f'{100 * (point.measured - point.requested):+.1f}',
            f'{100 * point.worst:.1f}',
            f'{point.quality:.3f}',
        ]
        for point in table.dial
    ]
    return table_lines(head, lines)


def sigma_as_markdown(table: Table, several: bool) -> str:
    """Level usage against noise."""
    head = ['sigma', 'budget, %', 'images', 'MACs %', 'tiles at each level, sparse to dense, %']
    lines = [
        [
            (f'{bin_.file}: ' if several else '') + f'{bin_.low:.0f} to {bin_.high:.0f}',
            f'{100 * bin_.budget:.0f}',
            str(bin_.images),
            f'{100 * bin_.macs_share:.1f}',
            ' / '.join(f'{100 * share:.0f}' for share in bin_.usage),
        ]
        for bin_ in table.sigma
    ]
    return table_lines(head, lines)


def table_lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers stand to the right."""
    rule = ['---', *['---:'] * (len(head) - 1)]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (head, rule, *lines))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    return NOTHING if value is None else f'{value:{"+" if sign else ""}.{digits}f}'
