"""Profiles a network: work of each layer in closed form, its time inside real forward passes, and what ran it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from cp_basicsr.archs.adapters import dense_weight, operator_flops
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.engine.compiled_network import why_not_compiled
from cp_basicsr.engine.host import ENGINE_VARIABLE, chosen_set, processor_sets
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.sparsity import MacTable, PrunableLayer, UniformRoute, routed

from .routed import RoutedProfile
from .watching import Note, TimedRoute, Watch

REFERENCE = 'reference'  # masked weights in PyTorch
PYTORCH = 'pytorch'


@dataclass(frozen=True)
class LayerProfile:
    """One layer at one level.

    Attributes:
        name: in the base network.
        weight: shape of its weight.
        output: shape of its output without batch axis; windows that the image is cut into come first.
        density: share of the weights that are kept.
        weights: kept weights.
        macs: of one input.
        milliseconds: median over the passes, with what is fused; None where it cannot be told from the rest.
        path: ``avx512`` or ``avx2``: compiled code, followed by ``winograd`` where it multiplies transformed weights;
            ``reference``: masked weights in PyTorch; ``pytorch``.
        reason: why no faster path ran; None: there is none.
        fused: what its time includes besides: activation, PixelShuffle, addition.
    """

    name: str
    weight: tuple[int, ...]
    output: tuple[int, ...]
    density: float
    weights: int
    macs: int
    milliseconds: float | None
    path: str
    reason: str | None
    fused: str


@dataclass(frozen=True)
class LevelProfile:
    """One level.

    Attributes:
        label: such as ``2:4``.
        layers: in the order in which they run.
        macs: of one input, classifier excluded.
        share: of the dense MACs.
        weights: kept by all layers.
        other_macs: in no layer: attention products.
        rest: milliseconds between the layers: attention, normalisation, what is not fused.
        milliseconds: median of whole passes in which no layer was watched.
    """

    label: str
    layers: tuple[LayerProfile, ...]
    macs: int
    share: float
    weights: int
    other_macs: int
    rest: float
    milliseconds: float


@dataclass(frozen=True)
class Profile:
    """A network on one input.

    Attributes:
        architecture: of the base network.
        shape: of the input, without batch axis.
        repeats: passes at each level.
        untraced: why layers run one by one and nothing is fused; None: they do not.
        levels: sparse to dense, those that were asked for.
        classifier_macs, classifier_milliseconds: of one prediction.
        pytorch_milliseconds: of the dense network in PyTorch, without any code of ours, in the faster of its layouts.
        routed: the input along its level map; None where it is no picture.
    """

    architecture: str
    shape: tuple[int, ...]
    repeats: int
    untraced: str | None
    levels: tuple[LevelProfile, ...]
    classifier_macs: int
    classifier_milliseconds: float
    pytorch_milliseconds: float
    routed: RoutedProfile | None


@dataclass(frozen=True)
class _Seen:
    """What one dense pass in PyTorch shows of a layer."""

    output: tuple[int, ...]
    macs: int


@torch.inference_mode()
def profile(
    net: ClassPruningNet, x: Tensor, levels: Sequence[int], repeats: int, choice: RoutingChoice | None = None
) -> Profile:
    """Profile levels of a network on the CPU.

    Passes at different levels take turns, so that a slower spell of the machine meets all of them.

    Args:
        net: in eval mode.
        x: one input, batch axis included.
        levels: level indices.
        repeats: passes at each level that are measured.
        choice: how ``x`` is routed; None: it is not.

    Raises:
        BudgetError: no mix of levels meets the budget of ``choice``.
    """
    restored = None if choice is None else net.restore(x, choice)
    shape = tuple(x.shape[1:])
    seen = _dense_pass(net, x)
    tile = net.calibration.trained_choice().tile if net.classifier.by_tile and x.dim() == 4 else None
    names = {net.base.get_submodule(name): name for name in seen}
    runs: dict[Hashable, Callable[[], Any]] = {}
    for level in levels:
        runs['whole', level] = partial(_timed, partial(net.engine.run, net.base, x, UniformRoute(level)))
        runs['watched', level] = partial(_watched, net, x, level, names)
    runs['classifier'] = partial(_timed, partial(net.predict, x, tile))
    for layout in (torch.contiguous_format, torch.channels_last)[: 2 if x.dim() == 4 else 1]:
        laid_out = x.contiguous(memory_format=layout)
        runs['pytorch', layout] = partial(_timed, partial(_in_pytorch, net, laid_out))
    if choice is not None:
        runs['routed'] = partial(_timed, partial(net.restore, x, choice))
    results = _in_turns(runs, repeats)
    table = net.macs(shape)
    profiles = []
    for level in levels:
        notes = {name: [notes[name] for _, notes in results['watched', level] if name in notes] for name in seen}
        layers = tuple(_layer_profile(net, level, name, seen[name], notes[name], table) for name in seen)
        between = [total - sum(note.seconds for note in notes.values()) for total, notes in results['watched', level]]
        profiles.append(
            LevelProfile(
                label=net.labels[level],
                layers=layers,
                macs=table.level(level),
                share=table.level(level) / table.dense,
                weights=sum(layer.weights for layer in layers),
                other_macs=table.level(level) - sum(layer.macs for layer in layers),
                rest=_median_ms(between),
                milliseconds=_median_ms(results['whole', level]),
            )
        )
    return Profile(
        architecture=net.base_options['type'],
        shape=shape,
        repeats=repeats,
        untraced=None if net.engine.refused else net.engine.untraced,
        levels=tuple(profiles),
        classifier_macs=net.classifier_macs(shape, tile),
        classifier_milliseconds=_median_ms(results['classifier']),
        pytorch_milliseconds=min(_median_ms(results[key]) for key in runs if key[0] == 'pytorch'),
        routed=restored and RoutedProfile.of(restored, choice, net.labels, _median_ms(results['routed'])),
    )


def _dense_pass(net: ClassPruningNet, x: Tensor) -> dict[str, _Seen]:
    """Layers that run, in order: all prunable ones, and those with weights that were left dense."""
    candidates = {name: net.base.get_submodule(name) for name in (*net.conversion.prunable, *net.conversion.left_dense)}
    counter = FlopCounterMode(display=False, custom_mapping=operator_flops())
    seen: dict[str, _Seen] = {}
    inside: list[tuple[str, int]] = []

    def enter(name: str, *_: object) -> None:
        inside.append((name, counter.get_total_flops()))

    def leave(module: nn.Module, _: object, output: Tensor) -> None:
        name, before = inside.pop()
        if inside:
            return  # a part of another layer
        macs = (counter.get_total_flops() - before) // 2 + (seen[name].macs if name in seen else 0)
        seen[name] = _Seen(tuple(output.shape[output.shape[0] == 1 :]), macs)

    handles = [module.register_forward_pre_hook(partial(enter, name)) for name, module in candidates.items()]
    handles += [module.register_forward_hook(leave) for module in candidates.values()]
    try:
        with counter:
            _in_pytorch(net, x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _in_pytorch(net: ClassPruningNet, x: Tensor) -> Tensor:
    with routed(UniformRoute(-1)):
        return net.base(x)


def _watched(net: ClassPruningNet, x: Tensor, level: int, names: dict[nn.Module, str]) -> tuple[float, dict[str, Note]]:
    """Seconds of a pass, and its notes."""
    watch = Watch(names)
    unrouted = [module for module in names if not isinstance(module, PrunableLayer)]
    run = partial(net.engine.run, net.base, x, UniformRoute(level), observe=partial(TimedRoute, watch=watch))
    with watch.hooked(unrouted):
        return _timed(run), watch.notes


def _in_turns(runs: Mapping[Hashable, Callable[[], Any]], repeats: int) -> dict[Hashable, list[Any]]:
    """What each run gave the second time of two in a row, so that none finds the cache full of another's weights."""
    results: dict[Hashable, list[Any]] = {key: [] for key in runs}
    for _ in tqdm(range(repeats), desc='passes', leave=False):
        for key, run in runs.items():
            run()
            results[key].append(run())
    return results


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * statistics.median(seconds)


def _layer_profile(
    net: ClassPruningNet, level: int, name: str, seen: _Seen, notes: Sequence[Note], table: MacTable
) -> LayerProfile:
    module = net.base.get_submodule(name)
    if isinstance(module, PrunableLayer):
        shape, kept = module.ranks.shape, module.nonzeros(level)
        macs = table.layers[name].positions * kept
    else:
        shape = dense_weight(module).shape
        kept, macs = shape.numel(), seen.macs
    path, reason = _path(net, module, level, seen, notes)
    return LayerProfile(
        name=name,
        weight=tuple(shape),
        output=seen.output,
        density=kept / shape.numel(),
        weights=kept,
        macs=macs,
        milliseconds=_median_ms([note.seconds for note in notes]) if notes else None,
        path=path,
        reason=reason,
        fused=notes[-1].fused if notes else '',
    )


def _path(
    net: ClassPruningNet, module: nn.Module, level: int, seen: _Seen, notes: Sequence[Note]
) -> tuple[str, str | None]:
    """What computed a layer, and why nothing faster did."""
    prunable = isinstance(module, PrunableLayer)
    if notes and notes[-1].compiled is not None:
        transformed = notes[-1].compiled.transformed[level if prunable else 0]
        return f'{chosen_set()} winograd' if transformed else chosen_set(), _why_not_avx512()
    path = REFERENCE if prunable and level != net.pattern.densest else PYTORCH
    if net.engine.refused:
        return path, net.engine.refused
    if not notes:
        return path, 'its parts run one by one between the layers'
    if not prunable and net.engine.untraced:
        return path, f'layers without levels are compiled in traced networks only ({net.engine.untraced})'
    return path, why_not_compiled(module) or f'an output of {seen.output} is not worth it'


def _why_not_avx512() -> str | None:
    if chosen_set() == 'avx512':
        return None
    return f'{ENGINE_VARIABLE}={chosen_set()}' if processor_sets()[0] == 'avx512' else 'the processor has no AVX-512F'
