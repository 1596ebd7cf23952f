"""Mean products of what a layer multiplies its weights with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convert import prunable_layers
from .layers import NMLinear, PrunableLayer
from .route import UniformRoute, routed

# Keeps directions that the inputs hardly show from being trusted; share of the mean squared input.
RIDGE = 1e-3
LEAST_SQUARE = 1e-9  # an input that is zero everywhere still gives a matrix that can be inverted


def has_moments(layer: PrunableLayer) -> bool:
    """Whether the layer's outputs are products of its weights with its inputs: a plain convolution or a Linear."""
    return layer.as_convolution() is not None or isinstance(layer, NMLinear)


def ridge(gram: Tensor) -> Tensor:
    """What is added to the diagonal of ``[K, K]`` mean products so that they can be inverted: a scalar."""
    return RIDGE * gram.diagonal().mean().clamp(min=LEAST_SQUARE)


def as_rows(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weights and bias of each output channel in one row, float64 ``[out, K]``."""
    rows = weight.flatten(1)
    return (rows if bias is None else torch.cat([rows, bias[:, None]], dim=1)).double()


def as_columns(layer: PrunableLayer, x: Tensor) -> Tensor:
    """What each output position of one sample multiplies its weights with, and 1 for a bias: ``[K, positions]``."""
    geometry = layer.as_convolution()
    if geometry is None:
        columns = x.reshape(-1, x.shape[-1]).T
    else:
        kernel = layer.dense_values()[0].shape[2:]
        columns = F.unfold(x[None], kernel, padding=geometry.padding, stride=geometry.stride)[0]
    if layer.dense_values()[1] is None:
        return columns
    return torch.cat([columns, torch.ones_like(columns[:1])])


@torch.no_grad()
def dense_moments(net: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean products of the inputs of every layer that :func:`has_moments`, in the dense network.

    Args:
        net: supernet.
        inputs: batches of inputs.

    Returns:
        float64 ``[K, K]`` by name of the layer, K the weights of an output channel and its bias; layers that are not
        reached are left out.
    """
    layers = {name: layer for name, layer in prunable_layers(net).items() if has_moments(layer)}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def watch(name: str) -> None:
        def reached(layer: PrunableLayer, arguments: tuple[Tensor, ...]) -> None:
            for sample in arguments[0].float():
                columns = as_columns(layer, sample)
                products = (columns @ columns.T).double()
                sums[name] = sums[name] + products if name in sums else products
                counts[name] += columns.shape[1]

        handles.append(layers[name].register_forward_pre_hook(reached))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in layers:
            watch(name)
        with routed(UniformRoute(-1)):
            for batch in inputs:
                net(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}
