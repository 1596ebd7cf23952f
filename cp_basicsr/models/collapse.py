"""Watching for a collapsed classifier: one level takes nearly every tile although the measured target does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from basicsr.utils import get_root_logger

if TYPE_CHECKING:
    from .class_pruning_model import ClassPruningModel

COLLAPSED_SHARE = 0.98
TARGET_SHARE = 0.9  # where the target itself gives a level this much, taking all of it is no collapse
SMOOTHING = 0.98  # mean over about 50 iterations: a single batch of few tiles says little
WARM_UP = 100  # iterations of the stage before the mean counts


class CollapseWatch:
    """Warns once for each stage. What it watches is not part of a checkpoint; a resumed run watches anew."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._seen = 0
        self._means: dict[str, float] = {}
        self._warned = False

    def watch(self, model: ClassPruningModel) -> None:
        """Look at the shares that the last step observed."""
        if model.stage.name != self._stage:
            self._stage, self._seen, self._means, self._warned = model.stage.name, 0, {}, False
        for key, value in model.objectives.observed.items():
            self._means[key] = SMOOTHING * self._means.get(key, value) + (1 - SMOOTHING) * value
        self._seen += 1
        if self._warned or self._seen < WARM_UP:
            return
        for level in range(len(model.net.levels)):
            share = self._means.get(f'tiles_level{level}', 0.0)
            target = self._means.get(f'target_level{level}', 0.0)
            if share > COLLAPSED_SHARE and target < TARGET_SHARE:
                self._warned = True
                get_root_logger().warning(
                    f'The classifier has collapsed: level {level} ({model.net.pattern.label(level)}) takes '
                    f'{100 * share:.1f} % of the tiles, the measured target gives it {100 * target:.1f} %. Lower '
                    'train.confidence_opt.loss_weight or start its ramp later (train.ramp.confidence), give the '
                    'classifier stage more iterations, or check that the levels differ in quality at all.'
                )
