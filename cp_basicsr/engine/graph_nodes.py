"""What the nodes of a traced network do."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .job import Activation

_RELU = (F.relu, torch.relu, F.relu_, torch.relu_, 'relu', 'relu_')
_LEAKY = (F.leaky_relu, F.leaky_relu_)
_ADD = (operator.add, operator.iadd, torch.add, 'add', 'add_')
_MULTIPLY = (operator.mul, operator.imul, torch.mul, 'mul', 'mul_')
# What F.interpolate does where nothing is said.
_AS_IT_IS = {
    'size': None,
    'scale_factor': None,
    'mode': 'nearest',
    'align_corners': None,
    'recompute_scale_factor': None,
    'antialias': False,
}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, F.relu_, F.leaky_relu_, torch.relu_}


def works_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes its input."""
    if node.op == 'call_module':
        return bool(getattr(modules.get(node.target), 'inplace', False))
    if node.op == 'call_method':
        return node.target.endswith('_') and not node.target.endswith('__')
    return node.op == 'call_function' and (node.target in _IN_PLACE or bool(node.kwargs.get('inplace')))


def activation_of(
    node: fx.Node, modules: dict[str, nn.Module], channels: int
) -> tuple[Activation, Tensor | None] | None:
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


def shuffle_factor(node: fx.Node, modules: dict[str, nn.Module]) -> int | None:
    """Factor of a PixelShuffle."""
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


def concatenated(node: fx.Node) -> list[fx.Node] | None:
    """The nodes that ``node`` concatenates along the channels."""
    if node.op != 'call_function' or node.target is not torch.cat:
        return None
    arguments = dict(zip(('tensors', 'dim'), node.args, strict=False)) | node.kwargs
    parts = arguments.get('tensors')
    return list(parts) if arguments.get('dim') == 1 and isinstance(parts, (list, tuple)) else None


def enlarged_from(node: fx.Node) -> fx.Node | None:
    """The node whose pixels ``node`` repeats, each twice along rows and columns."""
    if node.op != 'call_function' or node.target is not F.interpolate:
        return None
    arguments = dict(zip(('input', 'size', 'scale_factor', 'mode'), node.args, strict=False)) | node.kwargs
    smaller = arguments.pop('input')
    return smaller if {**_AS_IT_IS, **arguments} == {**_AS_IT_IS, 'scale_factor': 2} else None


def factor_of(node: fx.Node, value: fx.Node) -> float | None:
    """The number that ``value`` is multiplied by."""
    operands = _operands(node, _MULTIPLY)
    if operands is None:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    return float(other) if isinstance(other, (int, float)) and not isinstance(other, bool) else None


def addend_of(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """What ``value`` is added to; not where the other operand is the one that changes in place."""
    operands = _operands(node, _ADD)
    if operands is None or operands[0] is operands[1]:
        return None
    if works_in_place(node, {}) and operands[0] is not value:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    return other if isinstance(other, fx.Node) else None
