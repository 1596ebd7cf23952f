"""Tests one option file over its datasets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils import set_random_seed
from torch.utils.data import Dataset

from cp_basicsr.options import OptionError
from cp_basicsr.routing.policy import check_budget
from cp_basicsr.tools.ranks import place
from cp_basicsr.tools.report import file_name

from .classsr import Patches
from .images import Images
from .measuring import LoadSubject, Plan, load_image, measure
from .networks import OptionFile, title_of
from .pages import write_pages
from .published import published_rows
from .records import Records
from .results import Row, Table, make_table
from .settings import DEFAULT_BUDGETS, Settings
from .subject import Subject, WholeImage
from .timing import time_rows

DIAL_POINTS = 10
MARGIN = 0.01  # of the dense MACs: what the range of budgets may differ by from image to image of a set


def tables_of(file: OptionFile, out: Path, settings: Settings) -> list[Table]:
    """One table for each dataset of an option file, measured where there are no records yet.

    Args:
        file: the option file.
        out: folder for records and pages.
        settings: what is asked for.

    Raises:
        BudgetError: the levels do not allow a budget.
        OptionError: a dataset cannot be used.
    """
    blocks = [block for _, block in sorted(file.opt['datasets'].items())]
    titles = [title_of(block) for block in blocks]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise OptionError(f'{file.label}: two datasets are called {twice}; their results would mix. Rename one.')
    datasets = [build_dataset(block) for block in blocks]
    set_random_seed(file.opt['manual_seed'])  # a classifier without a checkpoint is the same on every rank
    model = build_model(file.opt)
    return [_table_of(file, model, dataset, out, settings) for dataset in datasets]


def _table_of(file: OptionFile, model: Any, dataset: Dataset, out: Path, settings: Settings) -> Table:
    title, scale = title_of(dataset.opt), file.opt.get('scale', 1)
    name = Path(file.label).name
    border = scale if scale > 1 else 0
    load = _loader(model, settings.protocol, scale, border)
    images = Images(dataset, settings.images)
    plan, notes = _plan(model, load_image(images, 0, load), settings)
    set_name = file_name(title)
    if plan.free and len(images) < len(dataset):  # what a control may spend on an image depends on all the others
        set_name += f'_first_{len(images)}'
    folder = out / 'records' / f'{name}-{file.fingerprint}-{settings.protocol}' / set_name
    records = Records(folder, images.names)
    rank, world = place()
    measure(images, load, plan, records, border, rank, world)
    if rank == 0 and settings.timed:
        time_rows(images, load, plan, records, settings.timed)
    table = make_table(title, file.label, model.net.labels, plan, settings.protocol, scale, records.all())
    table.notes += notes
    if len(images) < len(dataset):
        table.notes.append(f'{title}: the first {len(images)} of {len(dataset)} images only.')
    table.rows += _published(model.net, dataset.opt, len(images), scale)
    if rank == 0 and settings.pages and plan.budgets:
        write_pages(images, load, plan, out / 'pages' / name / file_name(title), settings.pages)
    return table


def _published(net: Any, block: Mapping[str, Any], images: int, scale: int) -> list[Row]:
    options = {key: value for key, value in net.base_options.items() if key != 'type'}
    return published_rows(type(net.base), options, block['name'], images, scale, block.get('sigma'))


def _loader(model: Any, protocol: str, scale: int, border: int) -> LoadSubject:
    if protocol == 'classsr':
        return lambda data, name: Patches(model, data, name)
    return lambda data, name: WholeImage(model, data, name, luma=scale > 1, border=border)


def _plan(model: Any, first: Subject, settings: Settings) -> tuple[Plan, list[str]]:
    """What to run, and notes for the table. ``first`` is the first image, by which budgets are judged."""
    lowest, highest = float(first.costs[0]) + first.overhead, float(first.costs[-1]) + first.overhead
    budgets, notes = settings.budgets, []
    if budgets is None:
        budgets = [budget for budget in DEFAULT_BUDGETS if lowest + MARGIN <= budget <= highest]
        if left_out := [f'{budget:g}' for budget in DEFAULT_BUDGETS if budget not in budgets]:
            reach = f'the levels allow {lowest:.3f} to {highest:.3f}'
            notes.append(f'Out of reach: budget {", ".join(left_out)}; {reach}, classifier included.')
    for budget in budgets:
        check_budget(budget, first.costs, first.overhead, '--budgets')
    dial = np.linspace(np.ceil(100 * (lowest + MARGIN)) / 100, 1, DIAL_POINTS) if settings.dial else ()
    free = settings.protocol == 'classsr' or model.choice.tolerance is None or not first.by_tile
    if free:
        notes.append('Cost may move from image to image, on routed rows and controls.')
    plan = Plan(
        len(model.net.levels),
        tuple(sorted(set(budgets), reverse=True)),
        tuple(settings.controls),
        tuple(round(float(budget), 2) for budget in dial),
        model.choice,
        free,
    )
    return plan, notes
