"""Start the sparse levels of a ``per_level`` supernet close to the dense network, by least squares.

A level that starts from the dense weights with zeros written in has features of its own, so its tiles disturb their
denser neighbours, and it takes thousands of iterations to recover. Here each layer of each level is fitted to what the
dense layer gives: the best values for its mask have a closed form, ``W H = C`` on the kept weights, and the masks are
chosen by how little that fit loses (:mod:`.elimination`), from the densest of the sparse levels to the sparsest, each
from the weights that the one before it keeps.

Measured against masks by ``|w| * rms(input)`` (as in Wanda, arXiv 2306.11695), dB below the dense network without any
training: CDnCNN colour, sigma 25, eight crops of CBSD68, 6:8 0.009 (0.050 by magnitude), 4:8 0.081 (0.297), 3:8 0.181
(0.617), 2:8 0.502 (1.237); M6C40 x2, 20 images of BSD100, 6:8 0.009 (0.010), 4:8 0.054 (0.079), 3:8 0.124 (0.191), 2:8
0.286 (0.438), 1:8 0.732 (0.984).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convert import prunable_layers
from .elimination import eliminate
from .layers import PrunableLayer
from .masks import weight_ranks
from .moments import as_columns, as_rows, has_moments, ridge
from .route import UniformRoute, routed

# A level meets two kinds of input: its own features and, beside a dense tile, the dense network's. M6C40 x2, 2:4, one
# batch, mean of 11 test images: own only 35.06 dB, both alike 35.09, dense only 35.07; 1:4 34.25, 34.29, 34.11.
OWN_SHARE = 0.5


class _Reached(Exception):
    """The layer that was waited for has its input."""


@torch.no_grad()
def reconstruct_levels(net: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    """Choose the ranks and fit the sparse levels of every convolution and Linear, from the first layer to the last.

    Args:
        net: supernet with ``per_level`` weights; a layer that runs several times is fitted to its first.
        inputs: batches of inputs; some dozens of different places, together a hundred times as many pixels as the
            widest layer has weights in a row, are plenty.

    Returns:
        Names of the layers fitted. The others (no plain convolution, or not reached) keep their values.
    """
    fitted = []
    for name, layer in prunable_layers(net).items():
        if layer.level_weights is None or not has_moments(layer):
            continue
        dense = _inputs_of(layer, net, inputs, layer.pattern.densest)
        if not dense:
            continue
        of_dense = _moments(layer, dense, dense)
        kept = torch.ones_like(of_dense[1], dtype=torch.bool)
        times_kept = torch.ones_like(layer.ranks, dtype=torch.float32)
        for level in reversed(range(layer.pattern.densest)):
            own = _inputs_of(layer, net, inputs, level)
            gram, cross = _to_fit(layer, of_dense, _moments(layer, own, dense))
            kept = eliminate(gram, cross, kept, *_groups(layer, level, kept.shape[1]))
            _fit(layer, level, gram, cross, kept)
            times_kept += kept[:, : layer.ranks[0].numel()].view_as(layer.ranks)
        layer.ranks.copy_(weight_ranks(times_kept, layer.pattern.m))
        fitted.append(name)
    return fitted


def starts_dense(net: nn.Module) -> bool:
    """Whether every sparse level still has the dense network's values, so that nothing learnt would be lost."""
    layers = [layer for layer in prunable_layers(net).values() if layer.level_weights is not None]
    return bool(layers) and all(
        torch.equal(own, layer.dense_values()[0]) for layer in layers for own in layer.level_weights
    )


def _to_fit(layer: PrunableLayer, dense: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The moments that a level is fitted to: of both kinds of input, with a ridge towards the dense values."""
    gram, cross = (OWN_SHARE * ours + (1 - OWN_SHARE) * theirs for ours, theirs in zip(own, dense, strict=True))
    share = ridge(gram)
    gram = gram + share * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return gram, cross + share * as_rows(*layer.dense_values())


def _groups(layer: PrunableLayer, level: int, columns: int) -> tuple[Tensor, Tensor]:
    """The group of each weight of a row, long ``[K]``, and how many of each group a level keeps; a bias stays."""
    in_width, *kernel = layer.ranks.shape[1:]
    taps, m = math.prod(kernel), layer.pattern.m
    lengths = [m] * (in_width // m) + ([in_width % m] if in_width % m else [])
    n = layer.pattern.levels[level]
    quota = [layer.pattern.kept_in_group(n, length) for length in lengths for _ in range(taps)]
    column = torch.arange(in_width * taps, device=layer.ranks.device)
    groups = column // taps // m * taps + column % taps
    extra = columns - len(column)
    return F.pad(groups, (0, extra), value=len(quota)), groups.new_tensor(quota + [1] * extra)


def _fit(layer: PrunableLayer, level: int, gram: Tensor, cross: Tensor, kept: Tensor) -> None:
    """Least squares on the kept weights and the bias of every output channel."""
    fitted = torch.zeros_like(cross)
    for row, columns in enumerate(kept):
        fitted[row, columns] = torch.linalg.solve(gram[columns][:, columns], cross[row, columns])
    weight = layer.level_weights[level]
    weight.copy_(fitted[:, : weight[0].numel()].view_as(weight))
    if layer.level_biases is not None:
        layer.level_biases[level].copy_(fitted[:, -1])


def _moments(layer: PrunableLayer, inputs: Sequence[Tensor], dense: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean products ``[K, K]`` of a layer's unfolded inputs with each other, and ``[out, K]`` with its dense outputs.

    K is the weights of an output channel, and one more for the bias where the layer has one.
    """
    rows = as_rows(*layer.dense_values())
    size = rows.shape[1]
    gram = rows.new_zeros(size, size)
    cross, count = torch.zeros_like(rows), 0
    for one, target in zip(inputs, dense, strict=True):
        columns, wanted = as_columns(layer, one), rows.float() @ as_columns(layer, target)
        gram += (columns @ columns.T).double()
        cross += (wanted @ columns.T).double()
        count += columns.shape[1]
    return gram / count, cross / count


def _inputs_of(layer: PrunableLayer, net: nn.Module, inputs: Sequence[Tensor], level: int) -> list[Tensor]:
    """The layer's input of each sample at a level; none where the layer is not reached."""
    with _waiting_for(layer) as reached, routed(UniformRoute(level)):
        for batch in inputs:
            with suppress(_Reached):
                net(batch)
    return [sample.float() for batch in reached for sample in batch]


@contextmanager
def _waiting_for(layer: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def reached(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0])
        raise _Reached

    handle = layer.register_forward_pre_hook(reached)
    try:
        yield found
    finally:
        handle.remove()
