"""Test option files over their datasets: dense, static, routed, and the ways to route that a classifier has to beat.

    python -m cp_basicsr.tools.leaderboard -opt options/test_cp_srvgg_x2.yml --out results/leaderboard --dial --pages 6
    python -m cp_basicsr.tools.leaderboard --readme README.md --results results/leaderboard/results.json

The first writes results.json and results.md to the folder given with --out. Every image is recorded there as soon as it
is done: run the same command again after an interruption and it goes on. Under torchrun or SLURM the images are shared
out. The second replaces what stands between the markers `summary: begin` and `summary: end` of a Markdown file (one
line for each table), and between `tables: begin` and `tables: end` (all of them).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cp_basicsr import autoload
from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.data.errors import DataError
from cp_basicsr.options import OptionError
from cp_basicsr.routing.controls import CONTROLS, DEFAULT_CONTROLS
from cp_basicsr.routing.policy import BudgetError
from cp_basicsr.sparsity import PatternError
from cp_basicsr.tools.arguments import read_count
from cp_basicsr.tools.leaderboards.settings import DEFAULT_BUDGETS, PROTOCOLS, Settings
from cp_basicsr.tools.ranks import place, take_device
from cp_basicsr.tools.report import write_text

if TYPE_CHECKING:
    from cp_basicsr.tools.leaderboards.results import Table

# What a user can cause and :func:`run` raises.
ERRORS = (BudgetError, CheckpointError, DataError, OptionError, PatternError)


def run(option_files: Sequence[Path], out: Path, settings: Settings) -> list[Table]:
    """Measure what has not been measured yet, and write ``results.json`` and ``results.md``.

    Args:
        option_files: BasicSR test option files with a ClassPruningModel.
        out: folder for everything.
        settings: what is asked for.

    Returns:
        One table for each dataset.

    Raises:
        BudgetError: the levels do not allow a budget.
        CheckpointError: a checkpoint is missing or does not fit.
        DataError: a test set is missing or damaged.
        OptionError, PatternError: an option file cannot be used.
    """
    autoload.activate()
    take_device()
    from cp_basicsr.tools.leaderboards.markdown import as_markdown
    from cp_basicsr.tools.leaderboards.networks import read_option_files
    from cp_basicsr.tools.leaderboards.testing import tables_of

    tables: dict[str, Table] = {}
    for file in read_option_files(option_files):
        for table in tables_of(file, out, settings):
            if table.dataset in tables:
                tables[table.dataset].join(table)
            else:
                tables[table.dataset] = table
        gc.collect()  # models hold cycles; the next one needs their memory
    content = [table.as_json() for table in tables.values()]
    write_text(out / 'results.json', json.dumps({'tables': content}, indent=1))
    write_text(out / 'results.md', as_markdown(tables.values()))
    return list(tables.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument('-opt', type=Path, nargs='+', metavar='FILE', help='BasicSR test option files')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder for records and results')
    defaults = ' '.join(f'{budget:g}' for budget in DEFAULT_BUDGETS)
    parser.add_argument(
        '--budgets', type=float, nargs='+', metavar='B', help=f'default: those of {defaults} that the levels allow'
    )
    parser.add_argument(
        '--controls', nargs='*', choices=CONTROLS, default=DEFAULT_CONTROLS, help='default: all but informed'
    )
    parser.add_argument('--protocol', choices=PROTOCOLS, default='image', help='classsr: its patches (32, stride 28)')
    parser.add_argument('--dial', action='store_true', help='ten budgets: requested against measured MACs')
    parser.add_argument('--images', type=read_count, metavar='N', help='only the first N images of each set')
    parser.add_argument('--time', type=int, default=0, metavar='N', help='time all rows again on N images of each set')
    parser.add_argument('--pages', type=int, default=0, metavar='N', help='draw level map and differences of N images')
    parser.add_argument('--readme', type=Path, nargs='+', metavar='FILE', help='put tables into these files')
    parser.add_argument('--results', type=Path, nargs='+', metavar='JSON', help='made of these')
    options = parser.parse_args(arguments)
    if options.readme and options.results:
        try:
            _update_readmes(options.readme, options.results)
        except OptionError as error:
            raise SystemExit(str(error)) from error
        return
    if not options.opt or not options.out:
        parser.error('-opt and --out are needed, or --readme and --results')
    if options.pages and options.protocol != 'image':
        parser.error('--pages needs --protocol image: patches have no level map')
    settings = Settings(
        options.budgets,
        options.controls,
        options.protocol,
        options.dial,
        images=options.images,
        timed=options.time,
        pages=options.pages,
    )
    try:
        run(options.opt, options.out, settings)
    except ERRORS as error:
        raise SystemExit(str(error)) from error
    if place()[0] == 0:
        sys.stdout.write((options.out / 'results.md').read_text(encoding='utf-8'))


def _update_readmes(readmes: Sequence[Path], results: Sequence[Path]) -> None:
    autoload.activate()
    from cp_basicsr.tools.leaderboards.readme import read_tables, update_readme

    tables = read_tables(results)
    for readme in readmes:
        update_readme(readme, tables)


if __name__ == '__main__':
    main()
