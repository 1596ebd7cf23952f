"""Traces a network and lets each convolution finish its outputs: activation, PixelShuffle, scaling, residual.

What follows a convolution is done while its outputs are still in registers, instead of in passes over memory.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from cp_basicsr.sparsity import PrunableLayer, active_route

from .compiled_layer import PLAIN, Epilogue
from .graph_nodes import (
    activation_of,
    addend_of,
    concatenated,
    enlarged_from,
    factor_of,
    shuffle_factor,
    works_in_place,
)
from .inputs import Inputs
from .job import Activation
from .storing import SHUFFLES


class FusedLayer(nn.Module):
    """A convolution and what stands around it, run by the active :class:`~cp_basicsr.engine.route.EngineRoute`.

    Args:
        layer: the convolution.
        doubled: whether it reads its inputs enlarged to twice their size.
        epilogue: what follows it.
    """

    def __init__(self, layer: nn.Module, doubled: bool, epilogue: Epilogue) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that the layer does not become a child a second time
        self.doubled = doubled
        self.epilogue = epilogue

    def forward(self, parts: list[Tensor], residual: Tensor | None = None) -> Tensor:
        epilogue = self.epilogue if residual is None else replace(self.epilogue, residual=residual)
        return active_route().run_with(self._layer[0], Inputs(tuple(parts), self.doubled), epilogue)


class Step(nn.Module):
    """A module that tracing does not look into."""


# Tracing replaces nn.Module.__call__ for the whole process; of two at once one would stay in place.
_tracing = threading.Lock()


class _Tracer(fx.Tracer):
    """Records what its own thread does; modules that other threads run meanwhile are left alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = threading.get_ident()

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (PrunableLayer, Step)) or super().is_leaf_module(module, name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def fused(
    net: nn.Module, block: int, leaf_functions: Iterable[Callable] = ()
) -> tuple[fx.GraphModule, list[nn.Conv2d]]:
    """The network as a graph of fused layers and the operations between them; it shares the network's parameters.

    Args:
        net: a network in eval mode.
        block: output channels that a kernel computes at once.
        leaf_functions: functions that are not looked into.

    Returns:
        The graph, to be called under an EngineRoute, and its dense convolutions.

    Raises:
        Exception: whatever the network's own code raises when it runs on symbols instead of tensors.
    """
    attributes = {module: dict(vars(module)) for module in net.modules()}
    try:
        with _tracing:
            graph = _Tracer(autowrap_functions=tuple(leaf_functions)).trace(net)
        constants = {name: value for name, value in vars(net).items() if name.startswith('_tensor_constant')}
    finally:
        # EDSR and others assign to attributes in forward; tracing would leave symbols there.
        for module, values in attributes.items():
            _restore(vars(module), values)
    modules = dict(net.named_modules())
    layers: dict[str, FusedLayer] = {}
    dense: list[nn.Conv2d] = []
    for node in list(graph.nodes):
        layer = modules.get(node.target) if node.op == 'call_module' else None
        if not isinstance(layer, (PrunableLayer, nn.Conv2d)):
            continue
        if not isinstance(layer, PrunableLayer):
            dense.append(layer)
        chain = _Chain(graph, modules, node, block)
        name = f'fused_{len(layers)}'
        layers[name] = FusedLayer(layer, chain.doubled, chain.epilogue)
        chain.replace_by(name)
    held = {**_used(graph, modules), **_attributes(graph, net, constants), **layers}
    result = fx.GraphModule(held, graph, type(net).__name__)
    return result.eval(), dense


def _restore(current: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Make ``current`` what it was, without a moment at which another thread would find it without its entries."""
    for name in current.keys() - values.keys():
        del current[name]
    for name, value in values.items():
        if name not in current or current[name] is not value:
            current[name] = value


def _used(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {n.target: modules[n.target] for n in graph.nodes if n.op == 'call_module' and n.target in modules}


def _attributes(graph: fx.Graph, net: nn.Module, constants: Mapping[str, Tensor]) -> dict[str, Any]:
    names = {n.target for n in graph.nodes if n.op == 'get_attr'}
    return {name: constants[name] if name in constants else operator.attrgetter(name)(net) for name in names}


@dataclass
class _Chain:
    """A convolution's node, those before it that its reading can do, and those after it that its store can do."""

    graph: fx.Graph
    modules: dict[str, nn.Module]
    start: fx.Node
    block: int
    epilogue: Epilogue = PLAIN

    def __post_init__(self) -> None:
        self.nodes = [self.start]
        self.residual: fx.Node | None = None
        out_width = self._out_width()
        while (user := self._next()) is not None:
            step = self._absorbed(user, out_width)
            if step is None:
                break
            self.epilogue = step
            self.nodes.append(user)
            if self.residual is not None:
                break
        if self.residual is None and self.epilogue.scale != 1.0:
            self._drop_scale()
        self.doubled, self.parts, self.skipped = self._read()

    def _out_width(self) -> int:
        layer = self.modules[self.start.target]
        return layer.out_width if isinstance(layer, PrunableLayer) else layer.out_channels

    def _next(self) -> fx.Node | None:
        """The only user of the last node, unless something between them works in place."""
        last = self.nodes[-1]
        if len(last.users) != 1:
            return None
        user = next(iter(last.users))
        node = self.start.next
        while node is not user:
            if node not in self.nodes and works_in_place(node, self.modules):
                return None
            node = node.next
        return user

    def _absorbed(self, user: fx.Node, out_width: int) -> Epilogue | None:
        """The epilogue with ``user`` in it; None: it cannot be."""
        now = self.epilogue
        plain = now.scale == 1.0 and now.activation is Activation.NONE
        activation = activation_of(user, self.modules, out_width)
        if activation is not None and plain:
            kind, slopes = activation
            # Before or after PixelShuffle is the same where all channels are treated alike.
            if now.shuffle == 1 or slopes is None or slopes.numel() == 1:
                return replace(
                    now, activation=kind, slopes=None if slopes is None else slopes.expand(out_width).contiguous()
                )
        factor = shuffle_factor(user, self.modules)
        if factor in SHUFFLES and now.shuffle == 1 and now.scale == 1.0 and self.block % factor == 0:
            return replace(now, shuffle=factor)
        factor = factor_of(user, self.nodes[-1])
        if factor is not None:
            return replace(now, scale=now.scale * factor)
        other = addend_of(user, self.nodes[-1])
        if other is not None:
            self.residual = other
            return now
        return None

    def _drop_scale(self) -> None:
        """Scaling is only done together with an addition."""
        while len(self.nodes) > 1 and factor_of(self.nodes[-1], self.nodes[-2]) is not None:
            self.nodes.pop()
        self.epilogue = replace(self.epilogue, scale=1.0)

    def _read(self) -> tuple[bool, list[fx.Node], list[fx.Node]]:
        """Whether it reads its inputs doubled, the maps whose concatenation they are, and the nodes that this skips."""
        source, skipped = self.start.args[0], []
        smaller = enlarged_from(source)
        if smaller is not None and self._unchanged_since(source):
            source, skipped = smaller, [source]
        twice = bool(skipped)
        parts = concatenated(source)
        if parts is None or not self._unchanged_since(source):
            return twice, [source], skipped
        return twice, parts, [*skipped, source]

    def _unchanged_since(self, node: fx.Node) -> bool:
        """Whether nothing works in place between a node and where the fused layer will stand."""
        while (node := node.next) is not self.nodes[-1]:
            if node not in self.nodes and works_in_place(node, self.modules):
                return False
        return True

    def replace_by(self, name: str) -> None:
        """Put one node where the last of the chain stands."""
        last = self.nodes[-1]
        with self.graph.inserting_after(last):
            inputs = (self.parts, *(() if self.residual is None else (self.residual,)))
            node = self.graph.create_node('call_module', name, inputs)
        last.replace_all_uses_with(node)
        for old in reversed(self.nodes):
            self.graph.erase_node(old)
        for old in self.skipped:
            if not old.users:
                self.graph.erase_node(old)
