"""What the user asked for at test time: a budget, one level, or plain argmax; by tile or for whole images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cp_basicsr.options import OptionError, check_choice, check_keys, check_number

DEFAULT_TILE = 16  # lq pixels
DEFAULT_TOLERANCE = 0.02


@dataclass(frozen=True)
class RoutingChoice:
    """How to choose levels.

    Attributes:
        budget: share of the dense MACs to spend, classifier included; None when not asked for.
        level: one level index for everything; None when not forced.
        tile: side of a tile in lq pixels; None routes whole images.
        tolerance: how far (share of the dense MACs) a single image may stray from the budget before the price is
            corrected for it; None lets cost follow difficulty freely from image to image.
    With neither budget nor level the classifier's most probable level is taken (``policy: argmax``).
    """

    budget: float | None = None
    level: int | None = None
    tile: int | None = DEFAULT_TILE
    tolerance: float | None = DEFAULT_TOLERANCE

    @classmethod
    def from_val_options(cls, val: Mapping[str, Any], where: str = 'val') -> RoutingChoice:
        """Read ``budget``, ``level``, ``policy``, ``tile`` and ``budget_tolerance`` of an option file's ``val`` block.

        Raises:
            OptionError: a value is of the wrong kind, or more than one of budget, level and policy is given.
        """
        given = [key for key in ('budget', 'level', 'policy') if val.get(key) is not None]
        if len(given) > 1:
            raise OptionError(f'{where} holds {" and ".join(given)}; they exclude each other: keep one.')
        if val.get('policy') is not None:
            check_choice(val['policy'], ['argmax'], f'{where}.policy')
        budget, level, tolerance = val.get('budget'), val.get('level'), val.get('budget_tolerance', DEFAULT_TOLERANCE)
        if budget is not None:
            budget = check_number(budget, f'{where}.budget', 0, 2)
        if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
            raise OptionError(
                f'{where}.level is {level!r}; allowed: the index of a level, 0 the sparsest, -1 the densest.'
            )
        if tolerance is not None:
            tolerance = check_number(tolerance, f'{where}.budget_tolerance', 0, 1)
        return cls(budget, level, read_tile(val.get('tile', {'size': DEFAULT_TILE}), f'{where}.tile'), tolerance)


def read_tile(tile: Mapping[str, Any] | None, where: str) -> int | None:
    """Side of a tile from ``{size: 16}``, or None for whole images (``~``).

    Raises:
        OptionError: not a block, an unknown key, or a size that is not a positive integer.
    """
    if tile is None:
        return None
    size = check_keys(tile, ['size'], where).get('size', DEFAULT_TILE)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(f'{where}.size is {size!r}; allowed: a positive number of lq pixels, or `tile: ~`.')
    return size
