"""What the user asked for at test time: a budget, one level, or plain argmax; by tile or for whole images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cp_basicsr.options import OptionError, check_choice, check_keys, check_number
from cp_basicsr.precision import DEFAULT_PRECISION, PRECISIONS

DEFAULT_TILE = 16  # lq pixels
DEFAULT_TOLERANCE = 0.02
VAL_KEYS = ('budget', 'level', 'policy', 'tile', 'budget_tolerance', 'precision')


@dataclass(frozen=True)
class RoutingChoice:
    """How to choose levels.

    Attributes:
        budget: share of the dense MACs to spend, classifier included; None when not asked for.
        level: one level index for everything; None when not forced.
        tile: side of a tile in lq pixels; None routes whole images.
        overlap: None: tiles are regions of one feature map. Else the image is cut into tiles, and each sees so many lq
            pixels beyond its own on each side.
        tolerance: how far (share of the dense MACs) a single image may stray from the budget before the price is
            corrected for it; None lets cost follow difficulty freely from image to image.
        precision: a key of :data:`cp_basicsr.precision.PRECISIONS`; the classifier keeps its own.
    With neither budget nor level the classifier's most probable level is taken (``policy: argmax``).
    """

    budget: float | None = None
    level: int | None = None
    tile: int | None = DEFAULT_TILE
    tolerance: float | None = DEFAULT_TOLERANCE
    overlap: int | None = None
    precision: str = DEFAULT_PRECISION

    @classmethod
    def from_val_options(cls, val: Mapping[str, Any], where: str = 'val') -> RoutingChoice:
        """Read :data:`VAL_KEYS` of an option file's ``val`` block.

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
        precision = DEFAULT_PRECISION if val.get('precision') is None else val['precision']
        check_choice(precision, PRECISIONS, f'{where}.precision')
        tile, overlap = read_tile(val.get('tile', {}), f'{where}.tile')
        return cls(budget, level, tile, tolerance, overlap, precision)


def read_tile(tile: Mapping[str, Any] | None, where: str) -> tuple[int | None, int | None]:
    """Side and overlap of a tile from ``{size: 16, overlap: 8}``, or None for both for whole images (``~``).

    Raises:
        OptionError: not a block, an unknown key, or a number that is not one of lq pixels.
    """
    if tile is None:
        return None, None
    options = check_keys(tile, ['size', 'overlap'], where)
    size, overlap = options.get('size', DEFAULT_TILE), options.get('overlap')
    if not _is_whole_number(size, 1):
        raise OptionError(f'{where}.size is {size!r}; allowed: a positive number of lq pixels, or `tile: ~`.')
    if overlap is not None and not _is_whole_number(overlap, 0):
        raise OptionError(
            f'{where}.overlap is {overlap!r}; allowed: lq pixels that a cut tile sees beyond its own on each side, '
            'from 0 up, or ~, which does not cut.'
        )
    return size, overlap


def _is_whole_number(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
