"""Checkpoints of a ClassPruningNet: their description, plain ones of the base network, and clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from basicsr.utils import get_root_logger
from torch import Tensor

from cp_basicsr.sparsity import native_state_dict, prunable_layers

if TYPE_CHECKING:
    from .class_pruning_arch import ClassPruningNet

DESCRIPTION = '_extra_state'  # torch's name for what get_extra_state returns
# 1: enough to refuse another network's checkpoint. 2: also all that building the network again takes.
FORMAT = 2
NAMED = 4  # how many differing names a message lists


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded into this network; the message says why and what to do."""


def describe(net: ClassPruningNet) -> dict[str, Any]:
    """What a checkpoint says about its network: the options it was built from, and what became of them."""
    return {
        'format': FORMAT,
        'base': net.base_options,
        'm': net.pattern.m,
        'levels': list(net.levels),
        'weights': net.weights,
        'layer_levels': {
            name: list(layer.pattern.levels)
            for name, layer in prunable_layers(net.base).items()
            if layer.pattern.levels != net.levels
        },
        'prunable': net.conversion.prunable,
        'classifier': type(net.classifier).__name__,
        'sparsity': net.sparsity_options,
        'classifier_options': net.classifier_options,
        'in_channels': net.in_channels,
        'scale': net.scale,
    }


def read_description(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """What :func:`describe` wrote into a checkpoint; None in a plain checkpoint of a base network."""
    if DESCRIPTION not in state_dict:
        return None
    return json.loads(bytes(state_dict[DESCRIPTION].tolist()))


def described_options(description: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the ClassPruningNet that a description was made of.

    Files that its parts were started from (``spynet_path``, a classifier's ``checkpoint``) are left out: the values are
    in the checkpoint, and the files are on another machine.

    Raises:
        CheckpointError: the description has not all that is needed, or was written by a later version.
    """
    if description['format'] > FORMAT:
        raise CheckpointError(
            f'It has format {description["format"]}, written by a later version of cp_basicsr; this one reads up to '
            f'{FORMAT}. Update cp_basicsr.'
        )
    if description['format'] < FORMAT:
        raise CheckpointError(
            f'It has format {description["format"]}, which does not describe the whole network. Load it with its '
            'option file (path.pretrain_network_g) and save it again.'
        )
    base = {key: value for key, value in description['base'].items() if not key.endswith('_path')}
    classifier = {key: value for key, value in description['classifier_options'].items() if key != 'checkpoint'}
    return {'base': base, 'sparsity': description['sparsity'], 'classifier': classifier}


def load_any_state(
    net: ClassPruningNet,
    load: Callable[..., Any],
    state_dict: Mapping[str, Tensor],
    strict: bool,
    assign: bool,
) -> Any:
    """Load a ClassPruningNet state dict with ``load``, or a plain one into ``net.base``.

    Raises:
        CheckpointError: it belongs to another architecture or other levels, or (strict) names or shapes differ.
    """
    found = read_description(state_dict)
    if found is not None:
        if strict:
            _compare(describe(net), found)
        target, own = load, net.state_dict()
    else:
        target, own = net.base.load_state_dict, native_state_dict(net.base)
        if not state_dict.keys() & own.keys() and all(key.startswith('base.') for key in state_dict):
            state_dict = {key.removeprefix('base.'): value for key, value in state_dict.items()}
        if strict:
            _check_names(net, state_dict)
    if not strict:
        state_dict = _fitting(own, state_dict)
    return target(state_dict, strict=strict, assign=assign)


def _fitting(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a checkpoint has a place here (``strict_load_g: false``); the rest is named in the log.

    Raises:
        CheckpointError: nothing has.
    """
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    if not fitting.keys() - {DESCRIPTION}:
        raise CheckpointError(f'The checkpoint has no value that fits; its names are {", ".join(list(found)[:NAMED])}.')
    left = sorted(found.keys() - fitting.keys())
    kept = sorted(own.keys() - fitting.keys())
    get_root_logger().warning(
        f'Not strict: left out of the checkpoint: {left or "nothing"}; kept as built: {kept or "nothing"}.'
    )
    return fitting


def _compare(own: dict[str, Any], found: dict[str, Any]) -> None:
    own, found = ({'layer_levels': {}, **side, 'base': side['base'].get('type')} for side in (own, found))
    names = {
        'base': 'network_g.base.type',
        'm': 'network_g.sparsity.m',
        'levels': 'network_g.sparsity.levels',
        'layer_levels': 'network_g.sparsity.layer_levels',
        'weights': 'network_g.sparsity.weights',
        'classifier': 'network_g.classifier.type',
        'prunable': 'the layers left prunable by network_g.sparsity.exclude',
    }
    for key, name in names.items():
        if own[key] != found[key]:
            raise CheckpointError(
                f'The checkpoint has another {name}: {_short(found[key])}, the option file has {_short(own[key])}. '
                f'Set it as in the checkpoint, or start from a plain checkpoint of the base network.'
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f'{text[:120]}...'


def _check_names(net: ClassPruningNet, state_dict: Mapping[str, Tensor]) -> None:
    native = native_state_dict(net.base)
    missing = sorted(native.keys() - state_dict.keys())
    unknown = sorted(state_dict.keys() - native.keys())
    shapes = [
        f'{key} {tuple(state_dict[key].shape)} instead of {tuple(native[key].shape)}'
        for key in native
        if key in state_dict and state_dict[key].shape != native[key].shape
    ]
    problems = [
        f'{label}: {", ".join(names[:NAMED])}{f" and {len(names) - NAMED} more" if len(names) > NAMED else ""}'
        for label, names in (('missing', missing), ('unknown', unknown), ('other shapes', shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f'The checkpoint does not fit {net.base_options["type"]} as network_g.base describes it '
            f'({"; ".join(problems)}). Check network_g.base against the option file of its training.'
        )
