"""Runs the rows of a table on every image of a dataset that has no record of them yet."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.routing.controls import levels_by_score, oracle_levels
from cp_basicsr.tools.ranks import own_first
from cp_basicsr.tools.report import machine

from .images import Images
from .quality import quality
from .records import ImageRecord, Records, RunRecord
from .subject import Outcome, Subject

RANDOM_SEED = 0
DIGITS = 6  # significant digits of errors and scores in a record

LoadSubject = Callable[[dict[str, Any], str], Subject]


@dataclass(frozen=True)
class Plan:
    """What is run on each image.

    Attributes:
        levels: number of levels.
        budgets: share of the dense MACs of each routed row.
        controls: of :data:`cp_basicsr.routing.controls.CONTROLS`; each runs at the cost of each routed row.
        dial: further budgets, without controls.
        choice: how the option file routes: tile and tolerance.
        free: whether cost may move from image to image on the routed rows; then it may on the controls too. Else every
            control spends on each image what the routed row spends on it.
    """

    levels: int
    budgets: tuple[float, ...]
    controls: tuple[str, ...]
    dial: tuple[float, ...]
    choice: RoutingChoice
    free: bool = False

    def chosen(self) -> dict[str, RoutingChoice]:
        """Runs that need no other image and no other run, by key."""
        static = {level_key(k): self.static_choice(k) for k in range(self.levels)}
        return static | {routed_key(budget): self.routed_choice(budget) for budget in (*self.budgets, *self.dial)}

    def static_choice(self, level: int) -> RoutingChoice:
        """One level for every tile; -1 is the dense network."""
        return replace(self.choice, budget=None, level=level)

    def routed_choice(self, budget: float) -> RoutingChoice:
        """Routed at a budget."""
        return replace(self.choice, budget=budget, level=None)

    def dense_choice(self) -> RoutingChoice:
        """The dense network."""
        return self.static_choice(-1)

    def lacks(self, record: ImageRecord, wanted: Iterable[str]) -> bool:
        """Whether an image has to be run: for one of the runs ``wanted``, or for what the controls choose by."""
        return not set(wanted) <= record.runs.keys() or self.lacks_distances(record)

    def lacks_distances(self, record: ImageRecord) -> bool:
        """Whether the control ``informed`` is asked for and a record has been made without what it needs."""
        return 'informed' in self.controls and not record.distances

    def controlled(self) -> dict[str, tuple[str, float]]:
        """Control and budget of the other runs, by key."""
        return {f'{control} {budget:g}': (control, budget) for budget in self.budgets for control in self.controls}


def level_key(level: int) -> str:
    """Key of a static level's run."""
    return f'level {level}'


def routed_key(budget: float) -> str:
    """Key of a routed run."""
    return f'routed {budget:g}'


def load_image(images: Images, number: int, load: LoadSubject) -> Subject:
    """The subject of one image of a test set."""
    return load(images.batch(number), images.names[number])


@torch.no_grad()
def measure(
    images: Images, load: LoadSubject, plan: Plan, records: Records, border: int, rank: int = 0, world: int = 1
) -> None:
    """Complete the records of a dataset.

    Args:
        images: the dataset's.
        load: makes the subject of a batch and a name.
        plan: the runs.
        records: where they are kept.
        border: pixels left out along each side by the metrics.
        rank, world: this process and how many there are.
    """

    def visit(index: int, wanted: Iterable[str], run: Callable[[Subject, ImageRecord], None]) -> None:
        record = records.read(index)
        if plan.lacks(record, wanted):
            run(load_image(images, index, load), record)
            records.write(index, record)

    def choose(subject: Subject, record: ImageRecord) -> None:
        _describe(subject, record, plan.choice.precision)
        if plan.lacks(record, map(level_key, range(plan.levels))):
            _run_levels(subject, record, plan, border)
        for key, choice in plan.chosen().items():
            if key not in record.runs:
                record.runs[key] = _run_record(subject, subject.choose(choice), plan.levels, border)

    def control(subject: Subject, record: ImageRecord, maps: Mapping[str, Tensor]) -> None:
        for key, levels in maps.items():
            if key not in record.runs:
                record.runs[key] = _run_record(subject, subject.follow(levels), plan.levels, border)

    def choose_and_control(subject: Subject, record: ImageRecord) -> None:
        choose(subject, record)
        control(subject, record, {key: levels[0] for key, levels in control_maps(plan, [record]).items()})

    order = own_first(len(images), rank, world)
    title = records.folder.name
    if not plan.free:
        for index in tqdm(order, desc=title, unit='image'):
            visit(index, [*plan.chosen(), *plan.controlled()], choose_and_control)
        return
    for index in tqdm(order, desc=title, unit='image'):
        visit(index, plan.chosen(), choose)
    if plan.controlled():
        everywhere = control_maps(plan, records.all())
        for index in tqdm(order, desc=f'{title}, controls', unit='image'):
            maps = {key: levels[index] for key, levels in everywhere.items()}
            visit(index, maps, partial(control, maps=maps))


def control_maps(plan: Plan, records: Sequence[ImageRecord]) -> dict[str, list[Tensor]]:
    """For each control of a plan the levels of each image, see :func:`control_levels`."""
    return {key: control_levels(name, budget, records) for key, (name, budget) in plan.controlled().items()}


def control_levels(control: str, budget: float, records: Sequence[ImageRecord]) -> list[Tensor]:
    """The levels ``[n]`` of each image by which a control spends what the routed rows of these images spend together.

    Args:
        control: of :data:`cp_basicsr.routing.controls.CONTROLS`.
        budget: names the routed rows.
        records: of images that may exchange work.
    """
    routed = [record.runs[routed_key(budget)] for record in records]
    weights = torch.cat([torch.tensor(record.weights, dtype=torch.float64) for record in records])
    costs = torch.tensor([record.costs for record in records], dtype=torch.float64).mean(dim=0)
    spent = sum(run.macs_share for run in routed) / len(routed)
    if control in ('oracle', 'informed'):
        errors = _relative_errors if control == 'oracle' else _relative_distances
        levels = oracle_levels(torch.cat([errors(record) for record in records]), costs, weights, spent)
    else:
        shares = torch.tensor([run.shares for run in routed], dtype=torch.float64).mean(dim=0)
        scores = _random_scores if control == 'random' else _edge_scores
        levels = levels_by_score(torch.cat([scores(record) for record in records]), shares, costs, weights, spent)
    return list(levels.split([len(record.weights) for record in records]))


def _relative_errors(record: ImageRecord) -> Tensor:
    """Errors ``[n, L]`` over the dense level's mean error on the image."""
    return _by_level(record.errors) / _dense_error(record)


def _relative_distances(record: ImageRecord) -> Tensor:
    """Distances ``[n, L]`` from the dense output over the dense level's true mean error on the image.

    That one number of each image ``informed`` is allowed to know; it has a say only where images exchange work. The
    dense error of a tile, the same at all its levels, is left out.
    """
    return _by_level(record.distances) / _dense_error(record)


def _by_level(values: Mapping[str, list[float]]) -> Tensor:
    return torch.tensor([values[str(k)] for k in range(len(values))], dtype=torch.float64).T


def _dense_error(record: ImageRecord) -> Tensor:
    weights = torch.tensor(record.weights, dtype=torch.float64)
    return (_by_level(record.errors)[:, -1] * weights).sum().clamp_min(1e-12)


def _edge_scores(record: ImageRecord) -> Tensor:
    return torch.tensor(record.edges, dtype=torch.float64)


def _random_scores(record: ImageRecord) -> Tensor:
    """The same for an image wherever and whenever it is run."""
    generator = torch.Generator().manual_seed(RANDOM_SEED + zlib.crc32(record.image.encode()))
    return torch.rand(len(record.weights), generator=generator, dtype=torch.float64)


def _describe(subject: Subject, record: ImageRecord, precision: str) -> None:
    record.image, record.machine = subject.name, machine(precision)
    record.by_tile, record.sigma = subject.by_tile, subject.sigma
    record.costs, record.weights = subject.costs.tolist(), subject.weights.tolist()
    record.edges = _rounded(subject.edges())


def _run_levels(subject: Subject, record: ImageRecord, plan: Plan, border: int) -> None:
    """Run the static levels, the densest first: only its output has to be kept, for the distances of the others.

    What the record has already of a level, a table may show: it stays.
    """
    dense = None
    for level in reversed(range(plan.levels)):
        outcome = subject.choose(plan.static_choice(level))
        if level_key(level) not in record.runs:
            record.runs[level_key(level)] = _run_record(subject, outcome, plan.levels, border)
            record.errors[str(level)] = _rounded(subject.errors())
        dense = subject.output() if dense is None else dense
        record.distances[str(level)] = _rounded(subject.errors(dense))


def _run_record(subject: Subject, outcome: Outcome, levels: int, border: int) -> RunRecord:
    return RunRecord(
        quality(outcome.image, subject.gt, border),
        outcome.macs_share,
        outcome.seconds,
        (outcome.levels.bincount(minlength=levels) / len(outcome.levels)).tolist(),
        outcome.levels.bincount(subject.weights, minlength=levels).tolist(),
        outcome.flops,
    )


def _rounded(values: Tensor) -> list[float]:
    return [float(f'{value:.{DIGITS}g}') for value in values.tolist()]
