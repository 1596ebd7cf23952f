"""The classifier's losses, built from the ``train`` block with errors that name the option."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from cp_basicsr.options import OptionError, check_keys, nearest

from .stages import StagePlan

DEFAULTS: dict[str, Mapping[str, Any] | None] = {
    'oracle': {'type': 'SoftOracleLoss'},  # without it nothing tells the classifier which level pays
    'budget': None,
    'confidence': None,
}


def build_criteria(train: Mapping[str, Any], plan: StagePlan) -> dict[str, nn.Module]:
    """The losses 'oracle', 'budget' and 'confidence' of ``train.oracle_opt`` and so on, without those that are ``~``.

    Raises:
        OptionError: a loss is not registered, or has an unknown or missing option, or the classifier stage has none.
    """
    blocks = {name: train.get(f'{name}_opt', default) for name, default in DEFAULTS.items()}
    criteria = {name: _build(block, f'train.{name}_opt') for name, block in blocks.items() if block is not None}
    if not criteria and any(stage.name == 'classifier' for stage in plan.stages):
        raise OptionError(
            'train.stages holds a classifier stage, but oracle_opt, budget_opt and confidence_opt of train are all ~: '
            'it has nothing to learn. Leave oracle_opt out for its default, or remove the stage.'
        )
    return criteria


def _build(block: Any, where: str) -> nn.Module:
    if not isinstance(block, Mapping) or 'type' not in block:
        raise OptionError(
            f'{where} is {block!r}; write a block with a type, for example {{type: BudgetLoss, target: 0.5}}.'
        )
    options = dict(block)
    name = options.pop('type')
    try:
        kind = LOSS_REGISTRY.get(name)
    except KeyError:
        known = sorted(LOSS_REGISTRY.keys())
        raise OptionError(
            f'{where}.type is {name!r}, which is not registered.{nearest(name, known)} Registered: {", ".join(known)}.'
        ) from None
    signature = inspect.signature(kind)
    check_keys(options, signature.parameters, where)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise OptionError(f'{where} ({name}): {error}. Its options are: {", ".join(signature.parameters)}.') from None
    return build_loss(block)
