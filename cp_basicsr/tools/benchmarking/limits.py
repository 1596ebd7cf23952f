"""What bounds a 3x3 convolution of the engine: limits of the machine, and where the layer's time goes beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

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
        unit: of the count: 'MAC', 'load' or 'B'.
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
        lanes = PIXELS * (2 if layer.paired else 1)
        each_block = macs // lanes // winograd.computed(layer.out_width, layer.block)
        loads = each_block * -(-layer.out_width // layer.block)
        return Work(f'{chosen_set()} winograd', 'bf16' if layer.paired else DEFAULT_PRECISION, macs, loads, 0)
    macs = int(mask.sum()) * vectors * PIXELS
    loads = winograd.direct_loads(mask, layer.block) * vectors
    return Work(chosen_set(), DEFAULT_PRECISION, macs, loads, layer.kernels[level].memory.size)


@dataclass(frozen=True)
class _Task:
    """What the machine is timed at; attributes as of :class:`Rate`."""

    name: str
    count: int
    unit: str
    run: Callable[[], object]

    def rate(self, seconds: Mapping[str, float]) -> Rate:
        return Rate(self.name, self.count, self.unit, seconds[self.name])


def _tasks(x: Tensor, peaks: Sequence[Peak]) -> list[_Task]:
    """Loops at their peak, and copies of a map like ``x`` and of one that no cache holds."""
    tasks = [_Task(peak.name, peak.count, peak.unit, peak.prepare()) for peak in peaks]
    for name, source in (('a map', x), ('a large map', torch.zeros(LARGE // x.element_size(), dtype=x.dtype))):
        size = source.numel() * source.element_size()
        label = f'copying {name}, {size / 1e6:.0f} MB read and as many written'
        tasks.append(_Task(label, 2 * size, 'B', partial(torch.zeros_like(source).copy_, source)))
    return tasks


@dataclass(frozen=True)
class _Subject:
    """A level in one precision, ready to be timed: its contender's name, and what runs it up to each stage."""

    label: str
    name: str
    work: Work
    stages: dict[str, Callable[[], object]]

    def key(self, stage: str) -> str:
        return f'{self.name} up to {stage}'

    @property
    def runs(self) -> dict[str, Callable[[], object]]:
        return {self.key(stage): run for stage, run in self.stages.items()}

    def limits(self, result: Result, seconds: Mapping[str, float], rates: Mapping[str, float]) -> LevelLimits:
        """From the seconds of all runs, and what the machine does per second, by names."""
        stages = stage_seconds({stage: seconds[self.key(stage)] for stage in self.stages})
        stages = {AROUND: result.seconds - sum(stages.values()), **stages}
        limit, loads_limit = self.work.macs / rates[MACS[self.work.precision].name], self.work.loads / rates[LOADS.name]
        return LevelLimits(self.label, result, self.work, stages, limit, loads_limit)


def _subjects(net: Any, x: Tensor, precision: str, names: Sequence[str]) -> list[_Subject]:
    """Levels of a compiled single layer, dense first, under these names."""
    net.run_base(x, UniformRoute(0), precision)
    ((module, layer),) = net.engine.prepared.compiled.layers.items()
    size = tuple(x.shape[2:])
    subjects = []
    for level, name in zip(reversed(range(len(net.levels))), names, strict=True):
        schedule = uniform_schedule(len(x), *size, level, layer.scratch, torch.get_num_threads())
        work = work_of(layer, level, module.mask(level).numpy(), size)
        runs = stage_runs(layer, Inputs((x,)), schedule, layer.transformed[level])
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
    subjects = [each for p in precisions for each in _subjects(net, x, p, [row.name for row in ours[p]])]
    peaks = {precision: MACS[precision] for precision in (DEFAULT_PRECISION, *precisions)}
    tasks = _tasks(x, [*peaks.values(), LOADED_MACS, LOADS])
    runs = {each.name: each.run for each in (*tasks, *contenders)}
    for subject in subjects:
        runs |= subject.runs
    rounds = timer.interleaved(runs)
    seconds = {name: median(samples) for name, samples in rounds.items()}
    rates = tuple(task.rate(seconds) for task in tasks)
    by_name = {rate.name: rate.per_second for rate in rates}
    dense = net.macs(x.shape[1:]).dense
    rows = {
        each.name: result_of(network, size, each, dense, rounds[each.name], error) for each, error in contenders.items()
    }
    return Limits(
        size,
        rates,
        {precision: by_name[peak.name] for precision, peak in peaks.items()},
        tuple(each.limits(rows[each.name], seconds, by_name) for each in subjects if each.name in rows),
        tuple(row for row in rows.values() if not row.ours),
    )
