"""Where a compiled layer's time goes: the same layer is timed with code that leaves the last stages of its work out.

Each stage finds what the stages before it made, as ever, and the differences of the times add up to the whole. What a
processor does at once with an earlier stage costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise

from llvmlite import ir

from cp_basicsr.engine.compiled_layer import PLAIN, CompiledLayer
from cp_basicsr.engine.driver import Driver
from cp_basicsr.engine.inputs import Inputs
from cp_basicsr.engine.ir import I1
from cp_basicsr.engine.native import Routine
from cp_basicsr.engine.schedule import Schedule

# What each stage calls of the driver's parts, beside the kernels; the first prepares the job and wakes the threads.
_CALLS = {
    'call': (),
    'copy': (('filling', 'fill'),),
    'transform': (('transforming', 'transform_inputs'),),
    'products': (('transforming', 'multiply'),),
    'transform back': (('transforming', 'transform_back'),),
    'store': (('storing', 'ask_for'), ('storing', 'store')),
}
STAGES = tuple(_CALLS)
TRANSFORMS = ('transform', 'transform back')  # of Winograd's convolution only


class PartialDriver(Driver):
    """Writes the convolution up to a stage.

    Args:
        paired: as for the driver.
        last: the last of :data:`STAGES` that is done.
    """

    def __init__(self, paired: bool, last: str) -> None:
        self._left_out = STAGES[STAGES.index(last) + 1 :]
        super().__init__(paired)

    def prepare(self) -> None:
        super().prepare()
        for stage in self._left_out:
            for part, call in _CALLS[stage]:
                setattr(getattr(self, part), call, _nothing)
        if 'copy' in self._left_out:  # nothing was seen that could be out of the ordinary
            self.filling.ordinary = lambda: I1(1)

    def _add_up(self, *arguments: ir.Value) -> None:
        if 'products' not in self._left_out:
            super()._add_up(*arguments)


def _nothing(*_: object) -> None:
    """Write no code."""


@cache
def _routine(paired: bool, last: str) -> Routine:
    return Routine(PartialDriver(paired, last))


def stage_runs(
    layer: CompiledLayer, inputs: Inputs, schedule: Schedule, transformed: bool
) -> dict[str, Callable[[], object]]:
    """What runs a layer up to each stage.

    Args:
        layer: compiled.
        inputs: as for :meth:`CompiledLayer.run`.
        schedule: of one level.
        transformed: whether this level runs as Winograd's convolution.

    Returns:
        By the stage's name, in order; the last is the whole layer.
    """
    stages = [stage for stage in STAGES if transformed or stage not in TRANSFORMS]
    routines = {stage: _routine(layer.paired, stage) for stage in stages}

    def run(routine: Routine) -> object:
        # Upwards, as a network runs its first layer.
        return layer.run(inputs, schedule, PLAIN, True, routine)

    return {stage: (lambda routine=routine: run(routine)) for stage, routine in routines.items()}


def stage_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each stage from the seconds up to it, in the order given; noise may make short ones negative."""
    ends = [0.0, *seconds.values()]
    return {stage: after - before for stage, (before, after) in zip(seconds, pairwise(ends), strict=True)}
