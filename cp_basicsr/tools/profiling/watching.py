"""Takes notes of each layer while a base network runs: how long it took, and what computed it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from cp_basicsr.engine.compiled_layer import PLAIN, CompiledLayer, Epilogue
from cp_basicsr.engine.inputs import Inputs
from cp_basicsr.engine.job import Activation
from cp_basicsr.engine.route import EngineRoute
from cp_basicsr.sparsity import NMLinear, Placement, PrunableLayer, Route


@dataclass
class Note:
    """One layer in one pass.

    Attributes:
        seconds: of all its calls.
        compiled: the engine's layer, if that computed it.
        fused: what was done with its outputs besides, in the time noted.
    """

    seconds: float = 0.0
    compiled: CompiledLayer | None = None
    fused: str = ''


@dataclass
class Watch:
    """Notes of one pass, by layer name.

    Args:
        names: of the layers to watch.
    """

    names: Mapping[nn.Module, str]
    notes: dict[str, Note] = field(default_factory=dict)
    _depth: int = 0

    @contextmanager
    def timing(
        self, module: nn.Module, compiled: CompiledLayer | None = None, epilogue: Epilogue = PLAIN
    ) -> Iterator[None]:
        """Note a call. What it calls in turn is part of its time."""
        self._depth += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._depth -= 1
        if self._depth == 0 and module in self.names:
            note = self.notes.setdefault(self.names[module], Note())
            note.seconds += seconds
            note.compiled = compiled
            note.fused = describe_epilogue(epilogue)

    @contextmanager
    def hooked(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Watch modules that no route runs: layers without levels."""
        open_calls = []

        def enter(module: nn.Module, _: object) -> None:
            open_calls.append(self.timing(module))
            open_calls[-1].__enter__()

        def leave(*_: object) -> None:
            open_calls.pop().__exit__(None, None, None)

        handles = [module.register_forward_pre_hook(enter) for module in modules]
        handles += [module.register_forward_hook(leave) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class TimedRoute(Route):
    """Runs layers by another route, and notes how long each took.

    Args:
        route: of the engine, or any other.
        watch: takes the notes.
    """

    def __init__(self, route: Route, watch: Watch) -> None:
        super().__init__()
        self.route = route
        self.positions = route.positions
        self.watch = watch

    def run(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        with self.watch.timing(layer, self._compiled(layer, Inputs((x,)))):
            return self.route.run(layer, x)

    def run_with(self, module: nn.Module, inputs: Inputs, epilogue: Epilogue) -> Tensor:
        """As :meth:`EngineRoute.run_with`."""
        with self.watch.timing(module, self._compiled(module, inputs), epilogue):
            return self.route.run_with(module, inputs, epilogue)

    def run_pixels(self, module: NMLinear, x: Tensor, epilogue: Epilogue = PLAIN) -> Tensor:
        """As :meth:`EngineRoute.run_pixels`."""
        with self.watch.timing(module, self.route.compiled.layers[module], epilogue):
            return self.route.run_pixels(module, x, epilogue)

    def levels_of(
        self, layer: PrunableLayer, shape: tuple[int, ...], placement: Placement | None = None
    ) -> tuple[int | Tensor, dict[int, int]]:
        return self.route.levels_of(layer, shape, placement)

    def _compiled(self, module: nn.Module, inputs: Inputs) -> CompiledLayer | None:
        return self.route.compiled_layer(module, inputs) if isinstance(self.route, EngineRoute) else None


def describe_epilogue(epilogue: Epilogue) -> str:
    """Text such as ``leaky, shuffle 2, residual``."""
    parts = []
    if epilogue.activation is not Activation.NONE:
        # LeakyReLU and PReLU are both a slope.
        parts.append('leaky' if epilogue.activation is Activation.SLOPE else epilogue.activation.name.lower())
    if epilogue.shuffle > 1:
        parts.append(f'shuffle {epilogue.shuffle}')
    if epilogue.residual is not None:
        parts.append('residual' if epilogue.scale == 1.0 else f'residual {epilogue.scale:g}')
    return ', '.join(parts)
