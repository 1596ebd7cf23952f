"""Tables from the records of images: means, budget errors, gains over static pruning, the share of the gap closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cp_basicsr.options import OptionError

from .measuring import Plan, level_key, routed_key
from .quality import headline_of
from .records import ImageRecord
from .sigma import SigmaBin, sigma_bins
from .timing import REPEATS


@dataclass
class Row:
    """One line of a table, mean over the images of a set. None where nothing is known or to be said.

    Attributes:
        file: the option file; of a published figure its source.
        name: what ran.
        kind: ``static`` (dense too), ``routed``, one of the controls, or ``published``.
        quality: value of each metric.
        macs_share: MACs as a fraction of the dense network's, classifier included.
        seconds: for one image.
        budget: requested, of routed rows and controls.
        labels: the levels, sparse to dense.
        usage: share of the tiles at each level.
        flops: 2 x MACs of one patch; see protocol ``classsr``.
        flops_share: the same as a fraction of the dense network's.
        below_dense: headline PSNR below the dense level of the same option file, in dB.
        over_static: headline PSNR above static pruning at the same MACs, interpolated between static levels, in dB.
        gap_closed: ``over_static`` as a fraction of the oracle's.
        convention: how a published figure was measured.
    """

    file: str
    name: str
    kind: str
    quality: dict[str, float]
    macs_share: float | None = None
    seconds: float | None = None
    budget: float | None = None
    labels: list[str] = field(default_factory=list)
    usage: list[float] = field(default_factory=list)
    flops: float | None = None
    flops_share: float | None = None
    below_dense: float | None = None
    over_static: float | None = None
    gap_closed: float | None = None
    convention: str | None = None

    @property
    def budget_error(self) -> float | None:
        """Measured minus requested share of the dense MACs, of routed rows."""
        return self.macs_share - self.budget if self.kind == 'routed' and self.budget is not None else None


@dataclass
class DialPoint:
    """One budget of the dial.

    Attributes:
        file: the option file.
        requested, measured: share of the dense MACs; measured is the mean over the images.
        worst: largest distance of a single image from what was requested.
        quality: headline PSNR.
    """

    file: str
    requested: float
    measured: float
    worst: float
    quality: float


@dataclass
class Table:
    """The rows of one dataset.

    Attributes:
        dataset: its title.
        images: how many it has.
        headline: the metric that rows are compared by.
        protocol: ``image`` or ``classsr``.
        machine: what the seconds were measured on; several where several machines shared the work.
        tile: for each option file what is routed as one, in lq pixels; None for whole images.
        rows: dense first.
        dial: requested against measured cost.
        sigma: level usage against noise.
        notes: what a reader has to know besides.
    """

    dataset: str
    images: int
    headline: str
    protocol: str
    machine: list[str]
    tile: dict[str, int | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    dial: list[DialPoint] = field(default_factory=list)
    sigma: list[SigmaBin] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Table:
        """What :meth:`as_json` gave."""
        rows = [Row(**row) for row in content['rows']]
        dial = [DialPoint(**point) for point in content['dial']]
        sigma = [SigmaBin(**bin_) for bin_ in content.get('sigma', [])]
        return cls(**{**content, 'rows': rows, 'dial': dial, 'sigma': sigma})

    def join(self, other: Table) -> None:
        """Take over the rows of another option file on the same dataset.

        Raises:
            OptionError: it has another number of images, or gray instead of colour ones.
        """
        if self.headline != other.headline:
            raise OptionError(
                f'Dataset {self.dataset} is compared by {self.headline} in one option file and by {other.headline} in '
                'another: gray and colour. Give different data different names.'
            )
        if self.images != other.images:
            raise OptionError(
                f'Dataset {self.dataset} has {self.images} images in one option file and {other.images} in another. '
                'Give different data different names.'
            )
        self.machine = list(dict.fromkeys(self.machine + other.machine))
        self.tile |= other.tile
        ours, published = [], []
        for row in self.rows + other.rows:
            if row.kind != 'published':
                ours.append(row)
            elif row not in published:
                published.append(row)
        self.rows = ours + published
        self.dial += other.dial
        self.sigma += other.sigma
        self.notes += other.notes


def make_table(
    dataset: str, file: str, labels: Sequence[str], plan: Plan, protocol: str, scale: int, records: list[ImageRecord]
) -> Table:
    """The table of one option file on one dataset.

    Args:
        dataset: title.
        file: the option file.
        labels: of the levels, sparse to dense.
        plan: what was run.
        protocol: ``image`` or ``classsr``.
        scale: of the dataset.
        records: complete, of all images.
    """
    headline = 'psnr_rgb' if protocol == 'classsr' else None
    names = list(records[0].runs[level_key(0)].quality)
    headline = headline if headline in names else headline_of(names, scale)
    densest = plan.levels - 1
    static = [
        _row(file, 'dense' if k == densest else f'static {labels[k]}', 'static', level_key(k), labels, records)
        for k in range(densest, -1, -1)
    ]
    rows = list(static)
    controls = plan.controlled()
    for budget in sorted(plan.budgets, reverse=True):
        rows.append(_row(file, f'routed {budget:g}', 'routed', routed_key(budget), labels, records, budget))
        for key, (control, of_budget) in controls.items():
            if of_budget == budget:
                rows.append(_row(file, key, control, key, labels, records, budget))
    for row in rows:
        if row.flops is not None:
            row.flops_share = row.flops / static[0].flops
    compare_with_static(rows, headline)
    machines = list(dict.fromkeys(record.machine for record in records))
    dial = [_dial_point(file, budget, headline, records) for budget in sorted(plan.dial)]
    timed = sum(bool(record.timed) for record in records)
    notes = [f'Seconds: the fastest of {REPEATS} runs, mean over the first {timed} images.'] if timed else []
    sigma = sigma_bins(file, sorted(plan.budgets, reverse=True), records)
    tile = {file: plan.choice.tile if records[0].by_tile else None}
    return Table(dataset, len(records), headline, protocol, machines, tile, rows, dial, sigma, notes)


def compare_with_static(rows: Sequence[Row], headline: str) -> None:
    """Fill in ``below_dense`` of the rows of one option file, and ``over_static`` and ``gap_closed`` of routed rows and
    controls.

    The densest level comes first. Static pruning at the same cost lies on straight lines between the static levels in
    the plane of MACs and PSNR.
    ``gap closed = (routed - static at equal cost) / (oracle - static at equal cost)``, each at its own cost; nothing is
    said where the oracle gains nothing.
    """
    points = sorted((row.macs_share, row.quality[headline]) for row in rows if row.kind == 'static')
    for row in rows:
        row.below_dense = rows[0].quality[headline] - row.quality[headline] if row is not rows[0] else None
        if row.kind != 'static':
            row.over_static = row.quality[headline] - float(np.interp(row.macs_share, *zip(*points, strict=True)))
    oracles = {row.budget: row.over_static for row in rows if row.kind == 'oracle'}
    for row in rows:
        if row.kind in ('routed', 'random', 'edge', 'informed') and oracles.get(row.budget, 0) > 0:
            row.gap_closed = row.over_static / oracles[row.budget]


def _row(
    file: str,
    name: str,
    kind: str,
    key: str,
    labels: Sequence[str],
    records: Sequence[ImageRecord],
    budget: float | None = None,
) -> Row:
    runs = [record.runs[key] for record in records]
    return Row(
        file,
        name,
        kind,
        {metric: _mean([run.quality[metric] for run in runs]) for metric in runs[0].quality},
        _mean([run.macs_share for run in runs]),
        _seconds(key, records),
        budget,
        list(labels),
        np.mean([run.usage for run in runs], axis=0).tolist(),
        _mean([run.flops for run in runs]) if runs[0].flops is not None else None,
    )


def _seconds(key: str, records: Sequence[ImageRecord]) -> float:
    """Of the images that were timed apart, where there are any; else of all."""
    timed = [record.timed[key] for record in records if key in record.timed]
    return _mean(timed or [record.runs[key].seconds for record in records])


def _dial_point(file: str, budget: float, headline: str, records: Sequence[ImageRecord]) -> DialPoint:
    runs = [record.runs[routed_key(budget)] for record in records]
    shares = [run.macs_share for run in runs]
    worst = max(abs(share - budget) for share in shares)
    return DialPoint(file, budget, _mean(shares), worst, _mean([run.quality[headline] for run in runs]))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
