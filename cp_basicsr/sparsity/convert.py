"""Turn a network into a supernet in place, refresh its ranks, and bake a level into a plain state dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from .layers import NMConv2d, NMConv3d, NMLinear, PrunableLayer
from .pattern import NMPattern, PatternError

WeightSharing = Literal['shared', 'per_level']
PLAIN_LAYERS: dict[type[nn.Module], type[PrunableLayer]] = {
    nn.Conv2d: NMConv2d,
    nn.Conv3d: NMConv3d,
    nn.Linear: NMLinear,
}


@dataclass
class ConversionReport:
    """What a conversion did: names of the layers made prunable, and why each other layer with weights was not."""

    prunable: list[str] = field(default_factory=list)
    left_dense: dict[str, str] = field(default_factory=dict)


def convert(
    net: nn.Module,
    pattern: NMPattern,
    exclude: Sequence[str] = (),
    weights: WeightSharing = 'shared',
    adapters: Mapping[type[nn.Module], type[PrunableLayer]] | None = None,
    layer_levels: Mapping[str, Sequence[int]] | None = None,
) -> ConversionReport:
    """Make every suitable layer of ``net`` prunable, in place.

    Suitable is a Conv2d or Conv3d (groups=1) or Linear whose input width is at least M and whose weight is an ordinary,
    trainable parameter. Parameters stay the same objects under the same names.

    Args:
        net: any network.
        pattern: group length and levels.
        exclude: fnmatch patterns of module names that stay dense; a matching container excludes what it holds.
        weights: ``'shared'``: one tensor for all levels; ``'per_level'``: own values for each sparse level.
        adapters: further module classes and the prunable classes they become; their children are left alone.
        layer_levels: N of each level for the layers whose name an fnmatch pattern matches, in place of ``pattern``'s.

    Raises:
        PatternError: an ``exclude`` or ``layer_levels`` pattern matches nothing, such levels cannot be used or are not
            as many as the network's, or nothing is left to prune.
    """
    if weights not in ('shared', 'per_level'):
        raise PatternError(f"{pattern.where}.weights is {weights!r}; allowed: 'shared', 'per_level'.")
    names = [name for name, _ in net.named_modules() if name]
    _check_exclude(exclude, names, pattern.where)
    targets = PLAIN_LAYERS | dict(adapters or {})
    own_patterns = _own_patterns(pattern, layer_levels)
    report = ConversionReport()
    adapted: list[str] = []
    for name, module in list(net.named_modules()):
        if any(name.startswith(f'{parent}.') for parent in adapted):
            continue
        target = targets.get(type(module))
        if target is None:
            reason = _why_not_supported(module)
        elif any(fnmatchcase(part, glob) for part in _self_and_parents(name) for glob in exclude):
            reason = 'excluded'
        else:
            reason = _why_not_prunable(module, target, pattern)
        if reason:
            report.left_dense[name] = reason
        if target is None or reason:
            continue
        module.__class__ = target
        own = next((each for glob, each in own_patterns.items() if fnmatchcase(name, glob)), pattern)
        module.start_sparsity(name, own, per_level=weights == 'per_level')
        report.prunable.append(name)
        if adapters and target in adapters.values():
            adapted.append(name)
    if not report.prunable:
        reasons = '; '.join(f'{name}: {why}' for name, why in list(report.left_dense.items())[:5])
        raise PatternError(
            f'{type(net).__name__} has no layer that N:M sparsity with m = {pattern.m} could '
            f'prune ({reasons or "no layers"}).'
        )
    _check_matches(own_patterns, report.prunable, f'{pattern.where}.layer_levels', 'prunable layer')
    return report


def _own_patterns(pattern: NMPattern, layer_levels: Mapping[str, Sequence[int]] | None) -> dict[str, NMPattern]:
    where = f'{pattern.where}.layer_levels'
    if not isinstance(layer_levels or {}, Mapping):
        raise PatternError(f'{where} is {layer_levels!r}; write a block, N of each level under the name of a layer.')
    patterns = {
        glob: replace(pattern, levels=levels, where=f'{where}.{glob}') for glob, levels in (layer_levels or {}).items()
    }
    for glob, own in patterns.items():
        if len(own.levels) != len(pattern.levels):
            raise PatternError(
                f'{where}.{glob} is {list(own.levels)}, {len(own.levels)} levels; the network has '
                f'{len(pattern.levels)}: {list(pattern.levels)}.'
            )
    return patterns


def _check_exclude(exclude: Sequence[str], names: list[str], where: str) -> None:
    if isinstance(exclude, str):
        raise PatternError(f'{where}.exclude is {exclude!r}; write a list, for example [{exclude!r}].')
    if other := next((glob for glob in exclude if not isinstance(glob, str)), None):
        raise PatternError(f'{where}.exclude holds {other!r}; write names of modules, for example conv_first.')
    _check_matches(exclude, names, f'{where}.exclude', 'module of the base network')


def _check_matches(globs: Iterable[str], names: list[str], where: str, kind: str) -> None:
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            near = get_close_matches(glob, names, n=3, cutoff=0.4)
            hint = f'nearest: {", ".join(near)}' if near else f'the first are: {", ".join(names[:5])}'
            raise PatternError(f'{where} pattern {glob!r} matches no {kind}; {hint}.')


def _self_and_parents(name: str) -> Iterator[str]:
    parts = name.split('.')
    for length in range(1, len(parts) + 1):
        yield '.'.join(parts[:length])


def _why_not_supported(module: nn.Module) -> str | None:
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        return f'{type(module).__name__} is not a plain Conv2d, Conv3d or Linear'
    return None


def _why_not_prunable(module: nn.Module, target: type[PrunableLayer], pattern: NMPattern) -> str | None:
    weight, _ = target.dense_values(module)
    if target in PLAIN_LAYERS.values():
        if 'weight' not in module._parameters:
            return 'its weight is computed (weight or spectral norm)'
        if getattr(module, 'groups', 1) != 1:
            return f'groups={module.groups}'
        if not weight.requires_grad:
            return 'its weight is fixed (requires_grad=False)'
    if weight.shape[1] < pattern.m:
        return f'{weight.shape[1]} input channels are fewer than m = {pattern.m}'
    return None


def prunable_layers(net: nn.Module) -> dict[str, PrunableLayer]:
    """Prunable layers of a supernet by name, in the order of the network."""
    return {layer.layer_name: layer for layer in net.modules() if isinstance(layer, PrunableLayer)}


def refresh_ranks(net: nn.Module) -> float:
    """Rank the weights of every prunable layer anew. Returns the share of weights whose rank changed."""
    layers = prunable_layers(net).values()
    return sum(layer.refresh_ranks() for layer in layers) / sum(layer.ranks.numel() for layer in layers)


def adopt_dense_values(net: nn.Module) -> None:
    """Let every level of a supernet start anew from the dense values: ranks and, with ``per_level``, own values."""
    for layer in prunable_layers(net).values():
        layer.adopt_dense_values()


def _named_places(net: nn.Module) -> Iterator[tuple[str, PrunableLayer]]:
    """Prunable layers under every name they have: one that stands at two places has two in a state dict."""
    for name, layer in net.named_modules(remove_duplicate=False):
        if isinstance(layer, PrunableLayer):
            yield name, layer


def set_straight_through(net: nn.Module, on: bool) -> None:
    """Let the gradients of sparse levels reach every weight, or only the weights they keep."""
    for layer in prunable_layers(net).values():
        layer.straight_through = on


def _sparsity_keys(net: nn.Module) -> set[str]:
    return {f'{name}.{key}' for name, layer in _named_places(net) for key in layer.sparsity_keys()}


def native_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """State dict of a supernet with the base network's own names only: its dense weights."""
    own = _sparsity_keys(net)
    return {key: value for key, value in net.state_dict().items() if key not in own}


@torch.no_grad()
def bake_state_dict(net: nn.Module, level: int) -> dict[str, Tensor]:
    """State dict of the plain base network with the zeros of ``level`` written in (copies); -1 is the densest level."""
    baked = {key: value.clone() for key, value in native_state_dict(net).items()}
    for name, layer in _named_places(net):
        index = layer.pattern.index(level)
        if index != layer.pattern.densest:
            baked |= {f'{name}.{key}': value.clone() for key, value in layer.baked_values(index).items()}
    return baked
