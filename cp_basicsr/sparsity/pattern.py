"""N:M patterns: how many weights each level keeps in a group of M consecutive input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_GROUP_LENGTH = 256  # ranks are stored as uint8


class PatternError(ValueError):
    """The group length or the levels cannot be used; the message says which value, where, and what is allowed."""


@dataclass(frozen=True)
class NMPattern:
    """The levels of a layer or network: level ``k`` keeps ``levels[k]`` of every ``m`` consecutive input channels.

    Attributes:
        m: group length M.
        levels: N of each level, strictly increasing; the last equals ``m``, because the densest level is the base
            network itself.
        where: option path named in error messages.

    Raises:
        PatternError: a value is not an integer, out of range, unsorted or repeated.
    """

    m: int
    levels: tuple[int, ...]
    where: str = 'network_g.sparsity'

    def __post_init__(self) -> None:
        object.__setattr__(self, 'levels', _as_sequence(self.levels, f'{self.where}.levels'))
        _check_integer(self.m, f'{self.where}.m')
        if not 2 <= self.m <= MAX_GROUP_LENGTH:
            raise PatternError(f'{self.where}.m is {self.m}; allowed: 2 to {MAX_GROUP_LENGTH}.')
        for n in self.levels:
            _check_integer(n, f'{self.where}.levels')
            if n > self.m:
                raise PatternError(
                    f'{self.where}.levels holds {n}, but N is at most m = {self.m}. Write N alone, for example '
                    f'`levels: [1, 2, 4]` with `m: 4`: YAML reads an unquoted 2:4 as the base-60 number 124.'
                )
            if n < 1:
                raise PatternError(f'{self.where}.levels holds {n}; each level keeps at least 1 of {self.m} weights.')
        if list(self.levels) != sorted(set(self.levels)):
            raise PatternError(
                f'{self.where}.levels is {list(self.levels)}; levels go from sparse to dense without repetition: '
                f'write {sorted(set(self.levels))}.'
            )
        if len(self.levels) < 2:
            raise PatternError(
                f'{self.where}.levels is {list(self.levels)}; write at least two levels, or there is nothing to choose.'
            )
        if self.levels[-1] != self.m:
            raise PatternError(
                f'{self.where}.levels is {list(self.levels)}; the last level is the base network itself and keeps all '
                f'{self.m} of {self.m}: write {[*self.levels, self.m]} (val.level chooses one at test time).'
            )

    @property
    def densest(self) -> int:
        """Index of the densest level."""
        return len(self.levels) - 1

    def index(self, level: int) -> int:
        """Level index with negative values counted from the densest, as in a Python list.

        Raises:
            PatternError: there is no such level.
        """
        count = len(self.levels)
        if isinstance(level, bool) or not isinstance(level, int) or not -count <= level < count:
            raise PatternError(
                f'level {level!r} does not exist: levels N = {list(self.levels)} of {self.m} are numbered 0 (sparsest) '
                f'to {count - 1} (densest), or -1 for the densest.'
            )
        return level % count

    def label(self, level: int) -> str:
        """Text such as ``'2:4'`` for people."""
        return f'{self.levels[level]}:{self.m}'

    def kept_in_group(self, n: int, length: int) -> int:
        """Weights of a group of ``length`` that N = ``n`` keeps; a remainder group of r < M keeps ceil(N*r/M)."""
        return -(-n * length // self.m)

    def kept(self, n: int, width: int) -> int:
        """Weights that N = ``n`` keeps for one output channel and one kernel tap of a layer ``width`` channels wide."""
        groups, remainder = divmod(width, self.m)
        return groups * n + self.kept_in_group(n, remainder)


def _as_sequence(levels: Sequence[int], where: str) -> tuple[int, ...]:
    if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
        raise PatternError(f'{where} is {levels!r}; write a list of integers, for example [1, 2, 4].')
    return tuple(levels)


def _check_integer(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PatternError(
            f'{where} holds {value!r} ({type(value).__name__}); only integers are allowed. '
            'A level is its N alone: 2, not 2:4.'
        )
