"""Runs the base network of a supernet on a GPU: values masked once, channels_last, tiles grouped by level.

No GPU computes an element-wise sparse convolution faster than a dense one. Grouping keeps a level map from costing more
than the dense network; it does not make it cost less.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cp_basicsr.precision import computing_in
from cp_basicsr.sparsity import LevelMapRoute, PrunableLayer, Route, prunable_layers, routed, trace_macs

from .grouped_route import GroupedRoute
from .host import COMPILE, ENGINE_VARIABLE, REFERENCE, EngineUnavailableError, asked_for
from .level_layers import LevelLayers
from .parameter_state import ParameterState, parameter_state

DEVICES = ('cuda',)


def asked_to_compile() -> bool:
    """Whether ``CP_ENGINE`` asks for torch.compile.

    Raises:
        EngineNameError, EngineUnavailableError: as :func:`~cp_basicsr.engine.host.asked_for`; the latter also where it
            names what a GPU has not.
    """
    wanted = asked_for()
    if wanted not in ('', COMPILE):
        raise EngineUnavailableError(
            f'{ENGINE_VARIABLE}={wanted} is none of {REFERENCE}, {COMPILE}, which a GPU can run'
        )
    return wanted == COMPILE


class Accelerator:
    """Makes the layers of one network at each level when they are first needed, and again when parameters changed.

    Args:
        say: is told in one sentence what runs how; may be told the same again.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Make everything anew at the next run."""
        self._state: ParameterState | None = None
        self._layers: dict[str, LevelLayers] = {}
        self._compiled: dict[tuple[str, int], Callable[[Tensor], Tensor] | None] = {}
        self._positions: dict[tuple[int, ...], dict[str, int]] = {}

    def run(self, base: nn.Module, x: Tensor, route: Route, precision: str) -> Tensor:
        """``base(x)`` along ``route``, which counts what ran as ever; in the type of ``x``.

        Args:
            base: a supernet in eval mode.
            x: its input.
            route: the levels to run at.
            precision: what layers compute in, a key of :data:`cp_basicsr.precision.PRECISIONS`.

        Raises:
            EngineUnavailableError: ``CP_ENGINE`` asks for something else.
        """
        compiling = asked_to_compile() and not isinstance(route, LevelMapRoute)
        with self._lock:
            layers = self._prepare(base, x, precision)
            program = self._program(base, route, layers, precision) if compiling else None
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        output = None if program is None else self._run_compiled(program, base, x, route, precision)
        if output is None:
            with routed(GroupedRoute(route, layers)), computing_in(precision, x.device):
                output = base(x)
        self._report(layers)
        return output.to(x.dtype)

    def _prepare(self, base: nn.Module, x: Tensor, precision: str) -> LevelLayers:
        state = parameter_state(base)
        if state != self._state:
            self.forget()
            self._state = state
        if precision not in self._layers:
            self._layers[precision] = LevelLayers(precision, self.say)
            self.say(
                f'Engine: {len(prunable_layers(base))} prunable layers run on {x.device.type} in {precision}, '
                'channels_last, with weights that are masked once; what runs at one level is grouped.'
            )
        return self._layers[precision]

    def _program(
        self, base: nn.Module, route: Route, layers: LevelLayers, precision: str
    ) -> Callable[[Tensor], Tensor] | None:
        """The network at the one level of ``route`` as torch.compile has it; None where that has failed."""
        key = precision, route.level
        if key not in self._compiled:
            self._compiled[key] = torch.compile(subnet(base, route.level, layers))
        return self._compiled[key]

    def _run_compiled(
        self, program: Callable[[Tensor], Tensor], base: nn.Module, x: Tensor, route: Route, precision: str
    ) -> Tensor | None:
        from torch._dynamo.exc import TorchDynamoException  # seconds to import, and compiled code has done so

        try:
            with computing_in(precision, x.device):
                output = program(x)
        except TorchDynamoException as error:
            self._compiled[precision, route.level] = None
            self.say(f'Engine: torch.compile failed ({type(error).__name__}), layers run one by one.')
            return None
        shape = tuple(x.shape[1:])
        if shape not in self._positions:
            self._positions[shape] = {name: of.positions for name, of in trace_macs(base, (1, *shape)).layers.items()}
        for name, layer in prunable_layers(base).items():
            route.count(layer, {layer.pattern.index(route.level): x.shape[0] * self._positions[shape][name]})
        return output

    def _report(self, layers: LevelLayers) -> None:
        if layers.semi_structured:
            self.say(f'Engine: {len(layers.semi_structured)} Linear layers have 2:4 semi-structured weights.')


def subnet(base: nn.Module, level: int, layers: LevelLayers) -> nn.Module:
    """A copy of ``base`` whose prunable layers are those of one level; no route is needed to run it.

    Args:
        base: a supernet in eval mode.
        level: level index, -1 the densest.
        layers: its layers.
    """
    replaced = {
        id(module): layers.at(module, module.pattern.index(level))
        for module in base.modules()
        if isinstance(module, PrunableLayer)
    }
    return copy.deepcopy(base, replaced)
