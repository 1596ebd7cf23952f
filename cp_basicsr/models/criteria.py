"""The classifier's losses, built from the ``train`` block with errors that name the option."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from cp_basicsr.options import OptionError, check_keys, nearest, read_block

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
    criteria = {name: _build(name, block) for name, block in blocks.items() if block is not None}
    if not criteria and any(stage.name == 'classifier' for stage in plan.stages):
        raise OptionError(
            'train.stages holds a classifier stage, but oracle_opt, budget_opt and confidence_opt of train are all ~: '
            'it has nothing to learn. Leave oracle_opt out for its default, or remove the stage.'
        )
    return criteria


def _build(slot: str, block: Any) -> nn.Module:
    where = f'train.{slot}_opt'
    options = read_block(block, where, ' with a type, for example {type: BudgetLoss, target: 0.5}', typed=True)
    name = options.pop('type')
    try:
        kind = LOSS_REGISTRY.get(name)
    except KeyError:
        known = sorted(LOSS_REGISTRY.keys())
        raise OptionError(
            f'{where}.type is {name!r}, which is not registered.{nearest(name, known)} Registered: {", ".join(known)}.'
        ) from None
    if not _fits(kind, slot):
        known = ', '.join(sorted(key for key in LOSS_REGISTRY.keys() if _fits(LOSS_REGISTRY.get(key), slot)))  # noqa: SIM118
        raise OptionError(f'{where}.type is {name!r}, which is no loss of that kind; allowed: {known}.')
    signature = inspect.signature(kind)
    check_keys(options, signature.parameters, where)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise OptionError(f'{where} ({name}): {error}. Its options are: {", ".join(signature.parameters)}.') from None
    return build_loss(block)


def _fits(kind: type, slot: str) -> bool:
    """Whether a loss is called as the slot's is: the oracle's with a measured target, the others' with costs."""
    if slot == 'oracle':
        return hasattr(kind, 'pricing') and hasattr(kind, 'target')
    parameters = list(inspect.signature(getattr(kind, 'forward', kind)).parameters)
    return parameters[1:] == ['log_probs', 'costs']
