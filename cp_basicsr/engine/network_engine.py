"""Runs the base network of a supernet along a route, with compiled code where that is possible."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cp_basicsr.precision import DEFAULT_PRECISION, computing_in
from cp_basicsr.sparsity import Route, prunable_layers, routed

from .accelerator import DEVICES, Accelerator
from .host import EngineUnavailableError, check_mode, set_for
from .parameter_state import parameter_state

if TYPE_CHECKING:
    # Where llvmlite is missing nothing can be prepared; networks then run in PyTorch.
    from .prepared import Prepared


def nothing_special(base: nn.Module) -> None:
    """No program is made for ``base`` by hand."""


def unobserved(route: Route) -> Route:
    """The route itself."""
    return route


class NetworkEngine:
    """Compiles a base network when it first runs in a precision, and again when its parameters have changed.

    A change behind autograd's back that keeps every norm (a permutation through ``.data``) needs a call of
    :meth:`forget`.

    Args:
        multiple: heights and widths of inputs must be multiples of it.
        leaf_functions: functions of the network's code that tracing does not look into.
        special: gives a network that computes the same by other means, made for one architecture and traced in place of
            it; None for all others.
        say: is told once, in one sentence, what runs how.

    Attributes:
        refused: why the last run on the CPU was not compiled; None: it was.
        prepared: what ran last on the CPU as compiled code; None: nothing yet.
    """

    def __init__(
        self,
        multiple: int,
        leaf_functions: Iterable[Callable],
        say: Callable[[str], None],
        special: Callable[[nn.Module], Callable[[Tensor], Tensor] | None] = nothing_special,
    ) -> None:
        self.multiple = multiple
        self.leaf_functions = tuple(leaf_functions)
        self.say = say
        self.special = special
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._accelerator = Accelerator(self._say_once)
        self.forget()

    @property
    def untraced(self) -> str | None:
        """Why what ran last as compiled code runs layer by layer; None: it is traced, or nothing was compiled."""
        return None if self.prepared is None else self.prepared.untraced

    def forget(self) -> None:
        """Compile anew at the next run."""
        self._state: tuple | None = None
        self._by_set: dict[str, Prepared] = {}
        self.refused: str | None = None
        self.prepared: Prepared | None = None
        self._accelerator.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> NetworkEngine:
        """Code is not copied: the copy of a network compiles its own."""
        return NetworkEngine(self.multiple, self.leaf_functions, self.say, self.special)

    def __reduce__(self) -> tuple:
        return NetworkEngine, (self.multiple, self.leaf_functions, self.say, self.special)

    def run(
        self,
        base: nn.Module,
        x: Tensor,
        route: Route,
        precision: str = DEFAULT_PRECISION,
        observe: Callable[[Route], Route] = unobserved,
    ) -> Tensor:
        """``base(x)`` along ``route``, which counts what ran as ever.

        Args:
            base, x, route: the network, its input and the levels to run at.
            precision: what layers compute in, a key of :data:`cp_basicsr.precision.PRECISIONS`. The output has the type
                of ``x`` in each.
            observe: on the CPU, is given the route that layers are run by and gives the one to run them by: a wrapper
                that takes notes, say.
        """
        try:
            check_mode(base)
            if x.device.type in DEVICES:
                return self._accelerator.run(base, x, route, precision).contiguous()
            self.prepared = prepared = self._prepare(base, x, precision)
        except EngineUnavailableError as error:
            self.refused = str(error)
            self._say_once(f'Layers run on the masked reference path: {error}.')
            return run_reference(base, x, observe(route), precision)
        self.refused = None
        return prepared.run(x, route, observe)

    def _prepare(self, base: nn.Module, x: Tensor, precision: str) -> Prepared:
        name = set_for(x, precision)
        from .instructions import instruction_set
        from .prepared import prepare

        with self._lock:
            state = parameter_state(base)
            if state != self._state:
                self._by_set.clear()
                self._state = state
            if name not in self._by_set:
                made = prepare(base, x, instruction_set(name), self.special, self.leaf_functions, self.multiple)
                self._by_set[name] = made
                self._report(base, name, made)
            return self._by_set[name]

    def _report(self, base: nn.Module, name: str, prepared: Prepared) -> None:
        total = len(prunable_layers(base))
        left, why = prepared.compiled.reference, prepared.untraced
        text = f'Engine: {total - len(left)} of {total} prunable layers run as compiled {name} code'
        text += f', layer by layer ({why})' if why else ''
        if left:
            reasons: dict[str, list[str]] = {}
            for layer, reason in left.items():
                reasons.setdefault(reason, []).append(layer)
            text += '; on the masked reference path: '
            text += ', '.join(f'{_some(layers)} ({reason})' for reason, layers in reasons.items())
        self._say_once(f'{text}.')

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)


def run_reference(base: nn.Module, x: Tensor, route: Route, precision: str = DEFAULT_PRECISION) -> Tensor:
    """``base(x)`` along ``route`` in PyTorch, with masked weights; see :meth:`NetworkEngine.run`."""
    with routed(route), computing_in(precision, x.device):
        output = base(x)
    return output.to(x.dtype) if isinstance(output, Tensor) else output


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
