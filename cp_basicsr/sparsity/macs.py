"""Exact multiply-adds (MACs) of a supernet: dense, of each level and layer, and of what a route ran.

Dense layers, attention products and the like are counted by ``torch.utils.flop_counter`` (it counts SwinIR-light as the
closed form does; thop and ptflops' default are 14 % off). Prunable layers are counted in closed form: output positions
times kept weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .convert import prunable_layers
from .layers import PrunableLayer


@dataclass(frozen=True)
class LayerMacs:
    """One prunable layer: output positions for one input, and kept weights (MACs for one position) at each level."""

    positions: int
    nonzeros: tuple[int, ...]


@dataclass(frozen=True)
class MacTable:
    """MACs of one input of a given shape.

    Attributes:
        fixed: MACs that every level spends (dense layers, attention products).
        layers: the prunable layers by name.
        output_shape: of the output, batch axis included.
    """

    fixed: int
    layers: Mapping[str, LayerMacs]
    output_shape: tuple[int, ...]

    def level(self, level: int) -> int:
        """MACs of the subnet at ``level``; -1 is the densest."""
        return self.fixed + sum(layer.positions * layer.nonzeros[level] for layer in self.layers.values())

    @property
    def dense(self) -> int:
        """MACs of the base network."""
        return self.level(-1)

    def spent(self, positions: Mapping[str, list[int]], samples: int = 1) -> int:
        """MACs of a route over ``samples`` inputs, from the output positions it counted (``Route.positions``)."""
        return samples * self.fixed + sum(
            count * nonzeros
            for name, counts in positions.items()
            for count, nonzeros in zip(counts, self.layers[name].nonzeros, strict=True)
        )


def trace_macs(
    net: nn.Module,
    shape: tuple[int, ...],
    operator_flops: Mapping[Any, Callable[..., int]] | None = None,
    **arguments: Any,
) -> MacTable:
    """Count one forward pass of a supernet.

    The pass runs on the meta device, where nothing is computed; a network that cannot (data-dependent code, operators
    without shape rules) runs once for real on zeros.

    Args:
        net: a supernet in eval mode or not (it is counted in eval mode).
        shape: input shape with a batch of 1.
        operator_flops: FLOPs (2 x MACs) of operators that PyTorch's counter does not know, from their shapes, as
            ``FlopCounterMode(custom_mapping=...)`` takes them.
        arguments: further keyword arguments of the network's forward.
    """
    operators = dict(operator_flops or {})
    parameter = next(net.parameters())
    try:
        with torch.no_grad():
            meta_net = copy.deepcopy(net).to('meta').eval()
            return _count(meta_net, torch.empty(shape, device='meta', dtype=parameter.dtype), arguments, operators)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        training = [module for module in net.modules() if module.training]
        try:
            with torch.no_grad():
                return _count(
                    net.eval(), torch.zeros(shape, device=parameter.device, dtype=parameter.dtype), arguments, operators
                )
        finally:
            for module in training:
                module.training = True


def _count(net: nn.Module, x: Tensor, arguments: Mapping[str, Any], operators: dict[Any, Any]) -> MacTable:
    layers = prunable_layers(net)
    positions = dict.fromkeys(layers, 0)
    counter = FlopCounterMode(display=False, custom_mapping=operators)
    flops_in_prunable = 0
    flops_before = 0

    def enter(*_: object) -> None:
        nonlocal flops_before
        flops_before = counter.get_total_flops()

    def leave(layer: PrunableLayer, _: object, output: Tensor) -> None:
        nonlocal flops_in_prunable
        flops_in_prunable += counter.get_total_flops() - flops_before
        positions[layer.layer_name] += output.numel() // layer.out_width

    handles = [layer.register_forward_pre_hook(enter) for layer in layers.values()]
    handles += [layer.register_forward_hook(leave) for layer in layers.values()]
    try:
        with counter:
            output = net(x, **arguments)
    finally:
        for handle in handles:
            handle.remove()
    return MacTable(
        fixed=(counter.get_total_flops() - flops_in_prunable) // 2,
        layers={
            name: LayerMacs(positions[name], tuple(layer.nonzeros(k) for k in range(len(layer.pattern.levels))))
            for name, layer in layers.items()
        },
        output_shape=tuple(output.shape),
    )
