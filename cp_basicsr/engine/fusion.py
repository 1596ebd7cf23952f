"""Traces a network and lets each convolution finish its outputs: activation, PixelShuffle, scaling, residual.

What follows a convolution is done while its outputs are still in registers, instead of in passes over memory.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cp_basicsr.sparsity import PrunableLayer, active_route

from .compiled_layer import PLAIN, Epilogue
from .job import Activation
from .storing import SHUFFLES


class FusedLayer(nn.Module):
    """A convolution and what follows it, run by the active :class:`~cp_basicsr.engine.route.EngineRoute`."""

    def __init__(self, layer: nn.Module, epilogue: Epilogue) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that the layer does not become a child a second time
        self.epilogue = epilogue

    def forward(self, x: Tensor | list[Tensor], residual: Tensor | None = None) -> Tensor:
        epilogue = self.epilogue if residual is None else replace(self.epilogue, residual=residual)
        return active_route().run_with(self._layer[0], x, epilogue)


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
            vars(module).clear()
            vars(module).update(values)
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
        layers[name] = FusedLayer(layer, chain.epilogue)
        chain.replace_by(name)
    held = {**_used(graph, modules), **_attributes(graph, net, constants), **layers}
    result = fx.GraphModule(held, graph, type(net).__name__)
    return result.eval(), dense


def _used(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {n.target: modules[n.target] for n in graph.nodes if n.op == 'call_module' and n.target in modules}


def _attributes(graph: fx.Graph, net: nn.Module, constants: Mapping[str, Tensor]) -> dict[str, Any]:
    names = {n.target for n in graph.nodes if n.op == 'get_attr'}
    return {name: constants[name] if name in constants else operator.attrgetter(name)(net) for name in names}


@dataclass
class _Chain:
    """A convolution's node and those after it that its store can do."""

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
            if node not in self.nodes and _in_place(node, self.modules):
                return None
            node = node.next
        return user

    def _absorbed(self, user: fx.Node, out_width: int) -> Epilogue | None:
        """The epilogue with ``user`` in it; None: it cannot be."""
        now = self.epilogue
        plain = now.scale == 1.0 and now.activation is Activation.NONE
        activation = _activation(user, self.modules, out_width)
        if activation is not None and plain:
            kind, slopes = activation
            # Before or after PixelShuffle is the same where all channels are treated alike.
            if now.shuffle == 1 or slopes is None or slopes.numel() == 1:
                return replace(
                    now, activation=kind, slopes=None if slopes is None else slopes.expand(out_width).contiguous()
                )
        factor = _shuffle(user, self.modules)
        if factor in SHUFFLES and now.shuffle == 1 and now.scale == 1.0 and self.block % factor == 0:
            return replace(now, shuffle=factor)
        factor = _factor(user, self.nodes[-1])
        if factor is not None:
            return replace(now, scale=now.scale * factor)
        other = _added(user, self.nodes[-1])
        if other is not None:
            self.residual = other
            return now
        return None

    def _drop_scale(self) -> None:
        """Scaling is only done together with an addition."""
        while len(self.nodes) > 1 and _factor(self.nodes[-1], self.nodes[-2]) is not None:
            self.nodes.pop()
        self.epilogue = replace(self.epilogue, scale=1.0)

    def _inputs(self) -> fx.Node | list[fx.Node]:
        """The convolution's input, or the maps whose concatenation it is."""
        source = self.start.args[0]
        parts = _concatenated(source)
        node = source.next
        while parts is not None and node is not self.nodes[-1]:
            if node not in self.nodes and _in_place(node, self.modules):
                return source
            node = node.next
        return source if parts is None else parts

    def replace_by(self, name: str) -> None:
        """Put one node where the last of the chain stands."""
        last = self.nodes[-1]
        source = self.start.args[0]
        with self.graph.inserting_after(last):
            inputs = (self._inputs(), *(() if self.residual is None else (self.residual,)))
            node = self.graph.create_node('call_module', name, inputs)
        last.replace_all_uses_with(node)
        for old in reversed(self.nodes):
            self.graph.erase_node(old)
        if _concatenated(source) is not None and not source.users:
            self.graph.erase_node(source)


_RELU = (F.relu, torch.relu, F.relu_, torch.relu_, 'relu', 'relu_')
_LEAKY = (F.leaky_relu, F.leaky_relu_)
_ADD = (operator.add, operator.iadd, torch.add, 'add', 'add_')
_MULTIPLY = (operator.mul, operator.imul, torch.mul, 'mul', 'mul_')
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, F.relu_, F.leaky_relu_, torch.relu_}


def _in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == 'call_module':
        return bool(getattr(modules.get(node.target), 'inplace', False))
    if node.op == 'call_method':
        return node.target.endswith('_') and not node.target.endswith('__')
    return node.op == 'call_function' and (node.target in _IN_PLACE or bool(node.kwargs.get('inplace')))


def _activation(node: fx.Node, modules: dict[str, nn.Module], channels: int) -> tuple[Activation, Tensor | None] | None:
    """Kind and slopes of ReLU, LeakyReLU, PReLU and GELU."""
    if node.op == 'call_module':
        module = modules.get(node.target)
        if isinstance(module, nn.ReLU):
            return Activation.RELU, None
        if isinstance(module, nn.GELU):
            return (Activation.GELU, None) if module.approximate == 'none' else None
        if isinstance(module, nn.LeakyReLU):
            return Activation.SLOPE, torch.tensor([float(module.negative_slope)])
        if isinstance(module, nn.PReLU) and module.weight.numel() in (1, channels):
            return Activation.SLOPE, module.weight.detach()
    elif node.op in ('call_function', 'call_method'):
        if node.target in _RELU:
            return Activation.RELU, None
        if node.target is F.gelu:
            return (Activation.GELU, None) if len(node.args) == 1 and not node.kwargs else None
        if node.target in _LEAKY:
            arguments = dict(zip(('input', 'negative_slope', 'inplace'), node.args, strict=False)) | node.kwargs
            slope = arguments.get('negative_slope', 0.01)
            return (Activation.SLOPE, torch.tensor([float(slope)])) if isinstance(slope, (int, float)) else None
    return None


def _shuffle(node: fx.Node, modules: dict[str, nn.Module]) -> int | None:
    if node.op == 'call_module' and isinstance(modules.get(node.target), nn.PixelShuffle):
        return modules[node.target].upscale_factor
    if node.op == 'call_function' and node.target is F.pixel_shuffle:
        factor = node.args[1] if len(node.args) > 1 else node.kwargs.get('upscale_factor')
        return factor if isinstance(factor, int) else None
    return None


def _operands(node: fx.Node, targets: tuple[Any, ...]) -> tuple[Any, Any] | None:
    if node.op not in ('call_function', 'call_method') or node.target not in targets:
        return None
    return tuple(node.args) if len(node.args) == 2 and not node.kwargs else None


def _concatenated(node: fx.Node) -> list[fx.Node] | None:
    """The nodes that ``node`` concatenates along the channels."""
    if node.op != 'call_function' or node.target is not torch.cat:
        return None
    arguments = dict(zip(('tensors', 'dim'), node.args, strict=False)) | node.kwargs
    parts = arguments.get('tensors')
    return list(parts) if arguments.get('dim') == 1 and isinstance(parts, (list, tuple)) else None


def _factor(node: fx.Node, value: fx.Node) -> float | None:
    """The number that ``value`` is multiplied by."""
    operands = _operands(node, _MULTIPLY)
    if operands is None:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    return float(other) if isinstance(other, (int, float)) and not isinstance(other, bool) else None


def _added(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """What ``value`` is added to; not where the other operand is the one that changes in place."""
    operands = _operands(node, _ADD)
    if operands is None or operands[0] is operands[1]:
        return None
    if _in_place(node, {}) and operands[0] is not value:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    return other if isinstance(other, fx.Node) else None
