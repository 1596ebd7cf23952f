"""A picture along its own level map, classifier and policy included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cp_basicsr.archs.restoring import Restored
from cp_basicsr.routing.choice import RoutingChoice


@dataclass(frozen=True)
class RoutedProfile:
    """One picture.

    Attributes:
        budget: requested share of the dense MACs; None: the most probable levels were taken.
        tile: side of a tile in lq pixels; None: routed as a whole.
        usage: share of the tiles at each level, by its label.
        macs: spent, classifier included.
        share: of the dense MACs.
        milliseconds: median, classifier and policy included.
    """

    budget: float | None
    tile: int | None
    usage: dict[str, float]
    macs: int
    share: float
    milliseconds: float

    @classmethod
    def of(cls, restored: Restored, choice: RoutingChoice, labels: Sequence[str], milliseconds: float) -> RoutedProfile:
        """From what a run gave and how long it took."""
        counts = restored.levels.flatten().bincount(minlength=len(labels))
        usage = {label: int(count) / restored.levels.numel() for label, count in zip(labels, counts, strict=True)}
        return cls(choice.budget, restored.tile, usage, restored.macs, restored.macs_share, milliseconds)

    @property
    def name(self) -> str:
        """As a row of a table."""
        return 'routed, argmax' if self.budget is None else f'routed, budget {self.budget:g}'

    def as_text(self) -> str:
        """A sentence about the level map."""
        tiles = 'Routed as a whole' if self.tile is None else f'Tiles of {self.tile} x {self.tile} pixels'
        return f'{tiles}: ' + ', '.join(f'{100 * share:.0f} % at {label}' for label, share in self.usage.items()) + '.'
