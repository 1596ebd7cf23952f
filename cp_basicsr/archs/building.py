"""From the blocks of ``network_g`` to a pattern, a base network and a classifier."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from cp_basicsr.options import OptionError, check_keys, nearest
from cp_basicsr.sparsity import NMPattern

from .adapters import REFUSED

# Names under which architectures take their number of input channels: BasicSR's own, then those of NAFNet, Restormer
# and others that are registered with it; `network_g.classifier.in_channels` serves the rest.
IN_CHANNEL_OPTIONS = (
    'num_in_ch',
    'in_chans',
    'in_channels',
    'in_ch',
    'num_input_channels',
    'img_channel',
    'inp_channels',
    'in_nc',
    'n_colors',
)


def read_pattern(sparsity: Mapping[str, Any] | None) -> NMPattern:
    """The levels of a ``network_g.sparsity`` block.

    Raises:
        OptionError: a key is missing or unknown.
        PatternError: the levels cannot be used.
    """
    sparsity = check_keys(sparsity, ['m', 'levels', 'layer_levels', 'exclude', 'weights'], 'network_g.sparsity')
    for key in ('m', 'levels'):
        if key not in sparsity:
            raise OptionError(f'network_g.sparsity.{key} is missing; for example `m: 4` with `levels: [1, 2, 4]`.')
    return NMPattern(sparsity['m'], sparsity['levels'])


def build_base(options: Mapping[str, Any]) -> nn.Module:
    """A plain base network from a ``network_g.base`` block.

    Raises:
        OptionError: the architecture is unknown or cannot become a ClassPruning network, or an option is not its own.
    """
    options = dict(options)
    name = options.pop('type', None)
    names = registered_names()
    known = [key for key in names if key not in REFUSED]
    if _public_name(str(name)) in REFUSED:
        reason = REFUSED[_public_name(name)]
        raise OptionError(f'network_g.base.type {name} cannot become a ClassPruning network: {reason}.')
    registered = names.get(_public_name(str(name)))
    if registered is None:
        raise OptionError(
            f'network_g.base.type is {name!r}, which is not registered.{nearest(name, known)} '
            f'Registered: {", ".join(sorted(known))}.'
        )
    kind = ARCH_REGISTRY.get(registered)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        allowed = ', '.join(inspect.signature(kind).parameters)
        raise OptionError(f'network_g.base ({name}): {error}. Its options are: {allowed}.') from None
    return kind(**options)


def registered_names() -> dict[str, str]:
    """The names in BasicSR's registry by the names that users type."""
    return {_public_name(key): key for key in ARCH_REGISTRY.keys()}  # noqa: SIM118 (Registry iterates over items)


def _public_name(name: str) -> str:
    """The name users type: BasicSR registers some classes with a suffix of its own (SRVGGNetCompact_basicsr)."""
    return name.removesuffix('_basicsr')


def input_channels(base: nn.Module, options: Mapping[str, Any]) -> int:
    """Input channels from the base's options or their defaults; colour when it has no such option."""
    parameters = inspect.signature(type(base)).parameters
    for name in IN_CHANNEL_OPTIONS:
        if name in parameters:
            value = options.get(name, parameters[name].default)
            if isinstance(value, int):
                return value
    return 3


def build_classifier(options: dict[str, Any], num_levels: int, in_channels: int) -> nn.Module:
    """A classifier from a ``network_g.classifier`` block, from which its ``type`` is taken.

    Raises:
        OptionError: the classifier is unknown, or an option is not its own or missing.
    """
    name = options.pop('type', 'DifficultyClassifier')
    classifiers = sorted(key for key in ARCH_REGISTRY.keys() if key.endswith('DifficultyClassifier'))  # noqa: SIM118
    if name not in ARCH_REGISTRY:
        raise OptionError(
            f'network_g.classifier.type is {name!r}, which is not registered.{nearest(name, classifiers)} '
            f'Ours are: {", ".join(classifiers)}.'
        )
    kind = ARCH_REGISTRY.get(name)
    parameters = inspect.signature(kind).parameters
    if not {'num_levels', 'in_channels'} <= parameters.keys():
        raise OptionError(
            f'network_g.classifier.type {name} is no classifier: it does not take num_levels and in_channels. '
            f'Ours are: {", ".join(classifiers)}.'
        )
    allowed = [key for key in parameters if key != 'num_levels']
    check_keys(options, allowed, 'network_g.classifier')
    try:
        inspect.signature(kind).bind(num_levels=num_levels, in_channels=in_channels, **options)
    except TypeError as error:
        raise OptionError(f'network_g.classifier ({name}): {error}. Its options are: {", ".join(allowed)}.') from None
    return kind(num_levels=num_levels, in_channels=in_channels, **options)
