"""What a leaderboard can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cp_basicsr.routing.controls import DEFAULT_CONTROLS

DEFAULT_BUDGETS = (0.75, 0.5, 0.4, 0.35, 0.25)
PROTOCOLS = ('image', 'classsr')


@dataclass(frozen=True)
class Settings:
    """What a leaderboard is asked for.

    Attributes:
        budgets: shares of the dense MACs; None takes those of DEFAULT_BUDGETS that the levels allow.
        controls: of :data:`cp_basicsr.routing.controls.CONTROLS`.
        protocol: ``image``, or ``classsr`` for patches of 32 lq pixels with stride 28.
        dial: whether ten budgets more are run, without controls.
        images: only the first so many images of each set are tested; None takes all.
        timed: the first so many images of each set are timed again, row beside row.
        pages: of so many images of each set a page is drawn.
    """

    budgets: Sequence[float] | None = None
    controls: Sequence[str] = DEFAULT_CONTROLS
    protocol: str = 'image'
    dial: bool = False
    images: int | None = None
    timed: int = 0
    pages: int = 0
