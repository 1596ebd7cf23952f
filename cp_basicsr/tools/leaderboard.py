"""Test option files over their datasets: dense, static, routed, and the ways to route that a classifier has to beat.

    python -m cp_basicsr.tools.leaderboard -opt options/test_cp_srvgg_x2.yml --out results/leaderboard --dial

writes results.json and results.md to the folder given with --out. Every image is recorded there as soon as it is done:
run the same command again after an interruption and it goes on. Under torchrun or SLURM the images are shared out.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cp_basicsr import autoload
from cp_basicsr.routing.controls import CONTROLS
from cp_basicsr.routing.policy import check_budget
from cp_basicsr.tools.ranks import place, take_device
from cp_basicsr.tools.report import write_text

if TYPE_CHECKING:
    from cp_basicsr.tools.leaderboards.measuring import Plan
    from cp_basicsr.tools.leaderboards.networks import OptionFile
    from cp_basicsr.tools.leaderboards.results import Table
    from cp_basicsr.tools.leaderboards.subject import Subject

DEFAULT_BUDGETS = (0.75, 0.5, 0.4, 0.35, 0.25)
PROTOCOLS = ('image', 'classsr')
DIAL_POINTS = 10
MARGIN = 0.01  # of the dense MACs: what the range of budgets may differ by from image to image of a set


def run(
    option_files: Sequence[Path],
    out: Path,
    budgets: Sequence[float] | None = None,
    controls: Sequence[str] = CONTROLS,
    protocol: str = 'image',
    dial: bool = False,
) -> list[Table]:
    """Measure what has not been measured yet, and write ``results.json`` and ``results.md``.

    Args:
        option_files: BasicSR test option files with a ClassPruningModel.
        out: folder for everything.
        budgets: shares of the dense MACs; None takes those of DEFAULT_BUDGETS that the levels allow.
        controls: of CONTROLS.
        protocol: ``image``, or ``classsr`` for patches of 32 lq pixels with stride 28.
        dial: whether ten budgets more are run, without controls.

    Returns:
        One table for each dataset.

    Raises:
        BudgetError: the levels do not allow one of ``budgets``.
        OptionError: an option file cannot be used.
    """
    autoload.activate()
    take_device()
    from cp_basicsr.tools.leaderboards.markdown import as_markdown
    from cp_basicsr.tools.leaderboards.networks import read_option_files

    tables: dict[str, Table] = {}
    for file in read_option_files(option_files):
        for table in _tables_of(file, out, budgets, controls, protocol, dial):
            if table.dataset in tables:
                tables[table.dataset].join(table)
            else:
                tables[table.dataset] = table
        gc.collect()  # models hold cycles; the next one needs their memory
    for table in tables.values():
        _published_last(table)
    content = [table.as_json() for table in tables.values()]
    write_text(out / 'results.json', json.dumps({'tables': content}, indent=1))
    write_text(out / 'results.md', as_markdown(tables.values()))
    return list(tables.values())


def _tables_of(
    file: OptionFile, out: Path, budgets: Sequence[float] | None, controls: Sequence[str], protocol: str, dial: bool
) -> list[Table]:
    from basicsr.data import build_dataset
    from basicsr.models import build_model

    from cp_basicsr.tools.leaderboards.measuring import measure
    from cp_basicsr.tools.leaderboards.networks import title_of
    from cp_basicsr.tools.leaderboards.published import published_rows
    from cp_basicsr.tools.leaderboards.records import Records
    from cp_basicsr.tools.leaderboards.results import make_table

    datasets = [build_dataset(block) for _, block in sorted(file.opt['datasets'].items())]
    model = build_model(file.opt)
    net, scale = model.test_net, file.opt.get('scale', 1)
    border = scale if scale > 1 else 0
    tables = []
    for dataset in datasets:
        title = title_of(dataset.opt)
        load = _loader(model, protocol, scale, border)
        plan, free, notes = _plan(model, load(_batch(dataset, 0), title), budgets, controls, protocol, dial)
        folder = out / 'records' / f'{Path(file.label).name}-{file.fingerprint}-{protocol}' / title.replace(' ', '_')
        records = Records(folder, len(dataset))
        measure(dataset, load, plan, records, border, *place(), free=free)
        table = make_table(title, file.label, net.labels, plan, protocol, scale, records.all())
        table.notes += notes
        base = net.base_options
        table.rows += published_rows(
            type(net.base),
            {key: value for key, value in base.items() if key != 'type'},
            dataset.opt['name'],
            len(dataset),
            scale,
            dataset.opt.get('sigma'),
        )
        tables.append(table)
    return tables


def _batch(dataset: Any, index: int) -> dict[str, Any]:
    from torch.utils.data import default_collate

    return default_collate([dataset[index]])


def _loader(model: Any, protocol: str, scale: int, border: int) -> Any:
    from cp_basicsr.tools.leaderboards.classsr import Patches
    from cp_basicsr.tools.leaderboards.subject import WholeImage

    if protocol == 'classsr':
        return lambda data, name: Patches(model, data, name)
    return lambda data, name: WholeImage(model, data, name, luma=scale > 1, border=border)


def _plan(
    model: Any,
    first: Subject,
    budgets: Sequence[float] | None,
    controls: Sequence[str],
    protocol: str,
    dial: bool,
) -> tuple[Plan, bool, list[str]]:
    """What to run, whether cost may move between images, and notes for the table.

    ``first`` is the first image of the set, by which budgets are judged.
    """
    import numpy as np

    from cp_basicsr.tools.leaderboards.measuring import Plan

    lowest, highest = float(first.costs[0]) + first.overhead, float(first.costs[-1]) + first.overhead
    notes = []
    if budgets is None:
        budgets = [budget for budget in DEFAULT_BUDGETS if lowest + MARGIN <= budget <= highest]
        if left_out := [f'{budget:g}' for budget in DEFAULT_BUDGETS if budget not in budgets]:
            reach = f'the levels allow {lowest:.3f} to {highest:.3f}'
            notes.append(f'Out of reach: budget {", ".join(left_out)}; {reach}, classifier included.')
    for budget in budgets:
        check_budget(budget, first.costs, first.overhead, '--budgets')
    dialled = np.round(np.linspace(np.ceil(100 * (lowest + MARGIN)) / 100, 1, DIAL_POINTS), 2) if dial else ()
    choice = model.choice
    free = protocol == 'classsr' or choice.tolerance is None or not first.by_tile
    if free:
        notes.append('Cost may move from image to image, on routed rows and controls.')
    plan = Plan(
        len(model.net.levels),
        tuple(sorted(budgets, reverse=True)),
        tuple(control for control in CONTROLS if control in controls),
        tuple(float(budget) for budget in dialled),
        choice,
    )
    return plan, free, notes


def _published_last(table: Table) -> None:
    """Published rows once and at the end, where several option files brought the same."""
    ours = [row for row in table.rows if row.kind != 'published']
    published: list = []
    for row in table.rows:
        if row.kind == 'published' and row not in published:
            published.append(row)
    table.rows = ours + published


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', type=Path, nargs='+', metavar='FILE', required=True, help='BasicSR test option files')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for records and results')
    parser.add_argument(
        '--budgets',
        type=float,
        nargs='+',
        metavar='B',
        help='fractions of the dense MACs; default: those of 0.75 0.5 0.4 0.35 0.25 that the levels allow',
    )
    parser.add_argument(
        '--controls', nargs='*', choices=CONTROLS, default=CONTROLS, help='at the cost of each budget; default: all'
    )
    parser.add_argument(
        '--protocol', choices=PROTOCOLS, default='image', help='classsr: patches of 32 lq pixels, stride 28, RGB'
    )
    parser.add_argument('--dial', action='store_true', help='ten budgets: requested against measured MACs')
    options = parser.parse_args(arguments)
    run(options.opt, options.out, options.budgets, options.controls, options.protocol, options.dial)
    if place()[0] == 0:
        sys.stdout.write((options.out / 'results.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    main()
