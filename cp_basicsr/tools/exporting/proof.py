"""Proves N:M of an exported file from its weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from .description import Description
from .errors import ExportError
from .weights import ExportedWeights, read_weights

NAMED = 3  # how many layers of one reason are named


@dataclass
class Proof:
    """What holds.

    Attributes:
        m: group length.
        layers: for each layer its N, its number of groups, its weights that are not zero and all its weights.
        dense: layers that hold no pattern, and why.
    """

    m: int
    layers: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)

    def as_text(self) -> str:
        """A few lines for people."""
        kept, total = (sum(layer[index] for layer in self.layers.values()) for index in (2, 3))
        groups = sum(layer[1] for layer in self.layers.values())
        held = ' and '.join(f'{n}:{self.m}' for n in sorted({n for n, *_ in self.layers.values()}))
        claim = f'{held} holds in all {len(self.layers)} prunable layers, in each of their {groups:,} groups'
        if all(n == self.m for n, *_ in self.layers.values()):
            claim = f'The densest level, {held}, asks for no zeros in its {len(self.layers)} prunable layers'
        lines = [f'{claim}: {kept:,} of {total:,} weights ({100 * kept / total:.1f} %) are not zero.']
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dense.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
            lines.append(f'Dense: {", ".join(names[:NAMED])}{more}: {reason}.')
        return '\n'.join(lines)


def prove(path: Path, m: int | None = None, n: int | None = None, exclude: Sequence[str] = ()) -> Proof:
    """Prove that each group of each layer of a file holds at most N weights that are not zero.

    Args:
        path: the file.
        m, n: the pattern of a file that does not describe itself; with a description they have to agree with it.
        exclude: fnmatch patterns of layers that were left dense, in a file that does not describe itself.

    Raises:
        ExportError: a group breaks the pattern (the message names layer and group), or a layer is missing.
    """
    found = read_weights(path)
    description = found.description or _described(path, found, m, n, exclude)
    if (m or description.m) != description.m or any(n not in (None, held) for held in description.pruned.values()):
        held = ', '.join(sorted({f'{held}:{description.m}' for held in description.pruned.values()}))
        raise ExportError(f'{path} says that it holds {held}, but {n}:{m} is to be proved.')
    proof = Proof(description.m, dense=dict(description.dense))
    for name, own in description.pruned.items():
        if name not in found.layers:
            raise ExportError(f'{path}: layer {name} is missing, so its {own}:{description.m} cannot be proved.')
        weight = found.layers[name]
        groups = _check_layer(path, name, weight, own, description.m)
        proof.layers[name] = (own, groups, int(weight.count_nonzero()), weight.numel())
    if not proof.layers:
        raise ExportError(f'{path} has no layer that {n}:{m} could hold in: {description.dense or "no weights"}.')
    return proof


def _described(path: Path, found: ExportedWeights, m: int | None, n: int | None, exclude: Sequence[str]) -> Description:
    """What is to hold in a file that does not say it."""
    if m is None or n is None:
        raise ExportError(f'{path} does not describe itself: give the pattern, for 2:4 as --n 2 --m 4.')
    if n > m:
        raise ExportError(f'{n}:{m} is no pattern: --n is at most --m.')
    pruned, dense = {}, {}
    for name, weight in found.layers.items():
        if any(fnmatchcase(name, glob) for glob in exclude):
            dense[name] = 'excluded'
        elif weight.shape[1] < m:
            dense[name] = f'{weight.shape[1]} input channels are fewer than m = {m}'
        else:
            pruned[name] = n
    return Description({}, m, pruned, dense)


def _check_layer(path: Path, name: str, weight: Tensor, n: int, m: int) -> int:
    """Count the groups of a layer.

    Raises:
        ExportError: naming the first group that holds too many weights.
    """
    kept = (weight != 0).flatten(2) if weight.dim() > 2 else (weight != 0).unsqueeze(2)
    kernel = tuple(weight.shape[2:])
    for start in range(0, weight.shape[1], m):
        group = kept[:, start : start + m]
        allowed = -(-n * group.shape[1] // m)
        broken = (group.sum(dim=1) > allowed).nonzero()
        if len(broken):
            output, tap = broken[0].tolist()
            place = f', kernel tap {_place(tap, kernel)}' if kernel else ''
            raise ExportError(
                f'{path} breaks {n}:{m} in layer {name}: output channel {output}{place}, input channels {start} to '
                f'{start + group.shape[1] - 1} hold {int(group[output, :, tap].sum())} weights that are not zero; '
                f'{allowed} are allowed.'
            )
    return kept.shape[0] * kept.shape[2] * -(-weight.shape[1] // m)


def _place(tap: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    place = []
    for side in reversed(kernel):
        tap, position = divmod(tap, side)
        place.append(position)
    return tuple(reversed(place))
