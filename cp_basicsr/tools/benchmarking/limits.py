"""What bounds a 3x3 convolution of the engine: limits of the machine, and where the layer's time goes beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median

import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from cp_basicsr.engine import winograd
from cp_basicsr.engine.compiled_layer import CompiledLayer
from cp_basicsr.engine.host import chosen_set
from cp_basicsr.engine.inputs import Inputs
from cp_basicsr.engine.instructions import PIXELS
from cp_basicsr.engine.schedule import uniform_schedule
from cp_basicsr.precision import DEFAULT_PRECISION
from cp_basicsr.sparsity import UniformRoute

from .contenders import checked, our_contenders, result_of, rival_contenders
from .networks import Network
from .peak import LOADED_MACS, LOADS, MACS, Peak
from .results import Result, best_rival
from .stages import stage_runs, stage_seconds
from .timing import Timer

M, LEVELS = 8, (1, 2, 4, 8)
LARGE = 256 * 1024**2  # bytes, far more than caches hold
AROUND = 'network'  # what a run through the network takes beside the layer


@dataclass(frozen=True)
class Rate:
    """A measured limit of the machine.

    Attributes:
        name: of what is done.
        count: how much of it one run did.
        unit: of the count: 'MAC', 'loads' or 'B'.
        seconds: median.
    """

    name: str
    count: int
    unit: str
    seconds: float

    @property
    def per_second(self) -> float:
        return self.count / self.seconds


@dataclass(frozen=True)
class Work:
    """What the code of a layer does at one level, in closed form.

    Attributes:
        code: name of the instruction set, followed by ``winograd`` where weights are transformed.
        precision: of the products: 'fp32' or 'bf16'.
        macs: multiply-adds of products.
        loads: vectors of 16 inputs that the products load; each multiply-add loads a weight besides.
        code_bytes: of straight-line code that a pattern is compiled into; 0: the products are a loop.
    """

    code: str
    precision: str
    macs: int
    loads: int
    code_bytes: int


@dataclass(frozen=True)
class LevelLimits:
    """One level in one precision.

    Attributes:
        label: such as ``1:8``.
        result: the layer run through its network, with true MACs.
        work: what the code does.
        stages: seconds of each stage, :data:`AROUND` among them; together those of ``result``.
        limit: seconds that the products take at the peak of multiply-adds.
        loads_limit: seconds that their loads of inputs take at the peak of loads.
    """

    label: str
    result: Result
    work: Work
    stages: dict[str, float]
    limit: float
    loads_limit: float

    @property
    def reached(self) -> float | None:
        """Share of the peak that the products reach while they run; None where noise hides how long they do."""
        return self.limit / self.stages['products'] if self.stages['products'] > 0 else None

    def most(self, rival: Result) -> float:
        """The time ratio against a rival if nothing but the products took time, and they ran at the peak."""
        return rival.seconds / self.limit

    def needed(self, rival: Result) -> float:
        """Share of the peak at which the whole run would have as high a time ratio as its MACs ratio."""
        return self.result.macs_ratio / self.most(rival)


@dataclass(frozen=True)
class Limits:
    """Everything about one input.

    Attributes:
        size: height and width of the input, pixels.
        rates: limits of the machine.
        peaks: multiply-adds per second by precision, those that were measured.
        levels: dense first, by precision.
        rivals: the dense layer in other runtimes.
    """

    size: tuple[int, int]
    rates: tuple[Rate, ...]
    peaks: dict[str, float]
    levels: tuple[LevelLimits, ...]
    rivals: tuple[Result, ...]

    def share_of_peak(self, rival: Result) -> float | None:
        """Of the peak in its precision, a plain convolution's multiply-adds; None where the peak is unknown."""
        peak = self.peaks.get(rival.precision)
        return None if peak is None else rival.macs / rival.seconds / peak

    @property
    def rival(self) -> Result | None:
        """The fastest float32 rival."""
        return best_rival(self.rivals, DEFAULT_PRECISION)


def winograd_macs(size: tuple[int, int], channels: int, outputs: int, block: int, paired: bool) -> int:
    """Multiply-adds of Winograd's convolution, the zeros that fill up its blocks of outputs and vectors included.

    Args:
        size: height and width, pixels.
        channels, outputs: of the layer.
        block: outputs that are computed at once.
        paired: terms are of two channels.
    """
    tiles = -(-size[0] // winograd.TILE_ROWS) * -(-size[1] // PIXELS) * (PIXELS // winograd.TILE_COLUMNS)
    terms = winograd.terms(channels, paired) * (2 if paired else 1)
    return winograd.PRODUCTS * tiles * terms * winograd.computed(outputs, block)


def work_of(layer: CompiledLayer, level: int, mask: np.ndarray, size: tuple[int, int]) -> Work:
    """What a compiled layer does at a level: bool mask ``[out, in, 3, 3]``, height and width in pixels."""
    vectors = size[0] * -(-size[1] // PIXELS)
    if layer.transformed[level]:
        macs = winograd_macs(size, layer.in_width, layer.out_width, layer.block, layer.paired)
        # A vector of inputs serves a whole block, in which each output takes one multiply-add.
        blocks = -(-layer.out_width // layer.block)
        lanes = PIXELS * (2 if layer.paired else 1)
        loads = macs // lanes // winograd.computed(layer.out_width, layer.block) * blocks
        return Work(f'{chosen_set()} winograd', 'bf16' if layer.paired else DEFAULT_PRECISION, macs, loads, 0)
    macs = int(mask.sum()) * vectors * PIXELS
    loads = winograd.direct_loads(mask, layer.block) * vectors
    return Work(chosen_set(), DEFAULT_PRECISION, macs, loads, layer.kernels[level].memory.size)


def _copies(x: Tensor) -> dict[tuple[str, int], Callable[[], object]]:
    """By name and bytes read and written, what copies a map like ``x`` and one that no cache holds."""
    runs = {}
    for name, source in (('a map', x), ('a large map', torch.zeros(LARGE // x.element_size(), dtype=x.dtype))):
        target = torch.zeros_like(source)
        size = source.numel() * source.element_size()
        label = f'copying {name}, {size / 1e6:.0f} MB read and as many written'
        runs[label, 2 * size] = lambda target=target, source=source: target.copy_(source)
    return runs


@dataclass(frozen=True)
class _Subject:
    """A level in one precision, ready to be timed."""

    label: str
    name: str
    work: Work
    runs: dict[str, Callable[[], object]]


def _subjects(net: object, x: Tensor, precision: str, names: Sequence[str]) -> list[_Subject]:
    """Levels of a compiled single layer, dense first, under these names."""
    net.run_base(x, UniformRoute(0), precision)
    ((module, layer),) = net.engine.prepared.compiled.layers.items()
    size = tuple(x.shape[2:])
    subjects = []
    for level, name in zip(reversed(range(len(net.levels))), names, strict=True):
        schedule = uniform_schedule(len(x), *size, level, layer.scratch, torch.get_num_threads())
        runs = stage_runs(layer, Inputs((x,)), schedule, layer.transformed[level])
        work = work_of(layer, level, module.mask(level).numpy(), size)
        subjects.append(_Subject(net.labels[level], name, work, runs))
    return subjects


def limits(
    network: Network, size: tuple[int, int], timer: Timer, rivals: Sequence[str], precisions: Sequence[str]
) -> Limits:
    """Measure everything in turn.

    Args:
        network: a single 3x3 convolution.
        size: height and width of the input, pixels.
        timer: how to time.
        rivals: keys of the runtimes.
        precisions: that our layer computes in; the engine must have them.
    """
    network = replace(network, budgets=())
    net, x = network.build(LEVELS, M), network.sample(size)
    get_root_logger().info(f'{network.title}, input {size[1]} x {size[0]}: preparing.')
    ours = {precision: list(our_contenders(network, net, x, precision)) for precision in precisions}
    contenders = dict(checked(chain(rival_contenders(net, x, rivals), *ours.values())))
    subjects = [s for p in precisions for s in _subjects(net, x, p, [each.name for each in ours[p]])]
    peaks = [*(MACS[p] for p in dict.fromkeys((DEFAULT_PRECISION, *precisions))), LOADED_MACS, LOADS]
    copies = _copies(x)
    measured = timer.interleaved(
        {
            **{peak.name: peak.prepare() for peak in peaks},
            **{name: run for (name, _), run in copies.items()},
            **{each.name: each.run for each in contenders},
            **{_key(each, stage): run for each in subjects for stage, run in each.runs.items()},
        }
    )
    seconds = {name: median(rounds) for name, rounds in measured.items()}
    rates = [_rate(peak, seconds) for peak in peaks]
    by_name = {rate.name: rate.per_second for rate in rates}
    rates += [Rate(name, count, 'B', seconds[name]) for name, count in copies]
    dense = net.macs(x.shape[1:]).dense
    rows = {
        each.name: result_of(network, size, each, dense, measured[each.name], error)
        for each, error in contenders.items()
    }
    levels = [_level(each, rows[each.name], seconds, by_name) for each in subjects if each.name in rows]
    return Limits(
        size,
        tuple(rates),
        {precision: by_name[peak.name] for precision, peak in MACS.items() if peak in peaks},
        tuple(levels),
        tuple(row for row in rows.values() if not row.ours),
    )


def _key(subject: _Subject, stage: str) -> str:
    return f'{subject.name} up to {stage}'


def _rate(peak: Peak, seconds: dict[str, float]) -> Rate:
    return Rate(peak.name, peak.count, peak.unit, seconds[peak.name])


def _level(subject: _Subject, result: Result, seconds: dict[str, float], rates: dict[str, float]) -> LevelLimits:
    work = subject.work
    stages = stage_seconds({stage: seconds[_key(subject, stage)] for stage in subject.runs})
    stages = {AROUND: result.seconds - sum(stages.values()), **stages}
    limit, loads_limit = work.macs / rates[MACS[work.precision].name], work.loads / rates[LOADS.name]
    return LevelLimits(subject.label, result, work, stages, limit, loads_limit)
