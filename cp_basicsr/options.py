"""Checks shared by all our option blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class OptionError(ValueError):
    """An option is wrong; the message names its path, its value, what is allowed and what to do."""


def check_keys(options: Mapping[str, Any] | None, allowed: Iterable[str], where: str) -> dict[str, Any]:
    """Return ``options`` as a dict (empty for None) after refusing unknown keys.

    Args:
        options: the block as read from the option file.
        allowed: the keys it may hold.
        where: option path for the message, such as ``network_g.sparsity``.

    Raises:
        OptionError: the block is not a mapping, or a key is unknown (the nearest match is named).
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise OptionError(f'{where} is {options!r}; write a block of keys: {", ".join(sorted(allowed))}.')
    allowed = sorted(allowed)
    for key in options:
        if key not in allowed:
            raise OptionError(f'Unknown key {key!r} in {where}.{nearest(key, allowed)} Allowed: {", ".join(allowed)}.')
    return dict(options)


def read_block(value: Any, where: str, form: str, typed: bool = False) -> dict[str, Any]:
    """A copy of the block that stands at ``where``, whatever its keys.

    Args:
        value: as read from the option file.
        where: option path for the message.
        form: ends the message "write a block".
        typed: whether it needs a ``type``.

    Raises:
        OptionError: it is no block, or has no type.
    """
    if not isinstance(value, Mapping) or (typed and 'type' not in value):
        raise OptionError(f'{where} is {value!r}; write a block{form}.')
    return dict(value)


def refuse_misspelt(options: Mapping[str, Any], ours: Iterable[str], where: str) -> None:
    """Refuse keys of a block shared with BasicSR that are nearly, but not quite, one of ours.

    Raises:
        OptionError: such a key.
    """
    ours = list(ours)
    for key in options:
        close = get_close_matches(str(key), ours, n=1, cutoff=0.8)
        if close and key not in ours:
            raise OptionError(f'Unknown key {key!r} in {where}. Did you mean {close[0]!r}?')


def check_choice(value: Any, allowed: Iterable[Any], where: str) -> Any:
    """Return ``value`` if it is one of ``allowed``, else raise an :class:`OptionError` naming both."""
    allowed = list(allowed)
    if value not in allowed:
        choices = ', '.join(repr(choice) for choice in allowed)
        raise OptionError(f'{where} is {value!r};{nearest(str(value), map(str, allowed))} allowed: {choices}.')
    return value


def check_number(value: Any, where: str, low: float, high: float) -> float:
    """Return ``value`` if it is a number in [low, high], else raise an :class:`OptionError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise OptionError(f'{where} is {value!r}; allowed: a number from {low:g} to {high:g}.')
    return float(value)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Text such as `` Did you mean 'levels'?``, or nothing when no allowed word is near."""
    close = get_close_matches(str(word), list(allowed), n=1, cutoff=0.5)
    return f' Did you mean {close[0]!r}?' if close else ''
