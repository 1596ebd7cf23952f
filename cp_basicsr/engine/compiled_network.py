"""The layers of a supernet that run as compiled code, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cp_basicsr.sparsity import Convolution, NMLinear, PrunableLayer, plain_convolution

from .compiled_layer import CompiledLayer
from .instructions import InstructionSet


@dataclass
class CompiledNetwork:
    """What became of each layer.

    Attributes:
        layers: compiled layers by the module that they stand for. A dense Conv2d has one level.
        activations: what a module applies to its own output besides (ECBSR's blocks).
        reference: for each layer left to PyTorch, the reason.
    """

    layers: dict[nn.Module, CompiledLayer] = field(default_factory=dict)
    activations: dict[nn.Module, nn.Module] = field(default_factory=dict)
    reference: dict[str, str] = field(default_factory=dict)

    @property
    def code_size(self) -> int:
        """Bytes of machine code and packed weights; code that layers share is counted for each."""
        return sum(layer.code_size for layer in self.layers.values())


@torch.no_grad()
def compile_layers(net: nn.Module, dense: Iterable[nn.Conv2d], instructions: InstructionSet) -> CompiledNetwork:
    """Compile every prunable layer of ``net`` at every level, and the given dense convolutions.

    Raises:
        EngineUnavailableError: the system gives no executable memory.
    """
    compiled = CompiledNetwork()
    prunable = {module: module.layer_name for module in net.modules() if isinstance(module, PrunableLayer)}
    for module, name in prunable.items():
        geometry = _geometry(module)
        if reason := _why_not(module, geometry):
            compiled.reference[name] = reason
            continue
        compiled.layers[module] = CompiledLayer(
            [_as_kernel(*module.level_values(k), module.mask(k)) for k in range(len(module.pattern.levels))],
            geometry.stride[0],
            geometry.padding,
            instructions,
        )
        if geometry.activation is not None:
            compiled.activations[module] = geometry.activation
    for module in dense:
        geometry = _geometry(module)
        if _why_not(module, geometry) is None:
            everything = torch.ones_like(module.weight, dtype=torch.bool)
            levels = [_as_kernel(module.weight, module.bias, everything)]
            compiled.layers[module] = CompiledLayer(levels, geometry.stride[0], geometry.padding, instructions)
    return compiled


def why_not_compiled(module: nn.Module) -> str | None:
    """Why no code is made for a prunable layer or dense convolution; None: it is."""
    return _why_not(module, _geometry(module))


def _geometry(module: nn.Module) -> Convolution | None:
    if isinstance(module, NMLinear):
        return Convolution()
    if isinstance(module, PrunableLayer):
        return module.as_convolution()
    return plain_convolution(module) if isinstance(module, nn.Conv2d) else None


def _why_not(module: nn.Module, geometry: Convolution | None) -> str | None:
    if geometry is None:
        return _unusual(module)
    if geometry.stride not in ((1, 1), (2, 2)):
        return f'stride {geometry.stride}'
    parameter = next(module.parameters())
    if parameter.device.type != 'cpu' or parameter.dtype != torch.float32:
        return f'{parameter.dtype} on {parameter.device}'
    return None


def _unusual(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return f'{type(module).__name__} is no two-dimensional convolution'
    if module.groups != 1:
        return f'{module.groups} groups'
    return f'dilation {module.dilation}' if module.dilation != (1, 1) else f'padding {_padding(module)!r}'


def _padding(module: nn.Conv2d) -> str:
    return module.padding if isinstance(module.padding, str) else module.padding_mode


def _as_kernel(weight: Tensor, bias: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Values of a Linear as those of a 1 x 1 convolution."""
    missing = (1,) * (4 - weight.dim())
    return weight.reshape(*weight.shape, *missing), bias, mask.reshape(*mask.shape, *missing)
