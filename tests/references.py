"""Slow, plain references in Python loops, written apart from the package, to test it against."""

import itertools
import math

import torch
from torch import Tensor


def ranks_by_hand(weight: Tensor, m: int) -> Tensor:
    """Ranks of ``[out, in, *kernel]``: 0 for the largest magnitude of a group, ties by channel."""
    out_width, in_width, *kernel = weight.shape
    ranks = torch.zeros(weight.shape, dtype=torch.uint8)
    for o in range(out_width):
        for tap in itertools.product(*(range(side) for side in kernel)):
            for start in range(0, in_width, m):
                group = range(start, min(start + m, in_width))
                order = sorted(group, key=lambda channel: (-abs(float(weight[(o, channel, *tap)])), channel))
                for rank, channel in enumerate(order):
                    ranks[(o, channel, *tap)] = rank
    return ranks


def mask_by_hand(weight: Tensor, n: int, m: int) -> Tensor:
    """Mask that keeps the n largest of every m, and ceil(n * r / m) of a last group of r."""
    ranks = ranks_by_hand(weight, m)
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    in_width = weight.shape[1]
    for channel in range(in_width):
        length = min(m, in_width - channel // m * m)
        mask[:, channel] = ranks[:, channel] < math.ceil(n * length / m)
    return mask


def masked_by_hand(weight: Tensor, n: int, m: int) -> Tensor:
    """Dense storage with the zeros of N:M written in."""
    return weight * mask_by_hand(weight.detach(), n, m)


def assert_pattern_holds(weight: Tensor, n: int, m: int) -> None:
    """Every group has at most n non-zeros (ceil(n * r / m) in a remainder)."""
    kept = (weight != 0).flatten(2) if weight.dim() > 2 else (weight != 0).unsqueeze(2)
    for start in range(0, weight.shape[1], m):
        group = kept[:, start : start + m]
        assert group.sum(dim=1).max() <= math.ceil(n * group.shape[1] / m)


def level_at(levels: Tensor, tile: int, y: int, x: int, lq: tuple[int, int], size: tuple[int, int]) -> int:
    """Level of pixel (y, x) of a map of ``size``, by the lq pixel that holds its centre. ``levels`` is one image's."""
    row = math.floor((y + 0.5) * lq[0] / size[0])
    column = math.floor((x + 0.5) * lq[1] / size[1])
    return int(levels[row // tile, column // tile])


def selected_by_hand(outputs: list[Tensor], levels: Tensor, tile: int, lq: tuple[int, int]) -> Tensor:
    """Feature map ``[B, C, h, w]`` whose pixels come from ``outputs[level of their tile]``."""
    selected = torch.empty_like(outputs[0])
    batch, _, height, width = selected.shape
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        level = level_at(levels[b], tile, y, x, lq, (height, width))
        selected[b, :, y, x] = outputs[level][b, :, y, x]
    return selected


NEAR = 1e-5  # of the largest output: how far compiled code may be from PyTorch
ROUNDING = 1e-6  # of the largest sum of magnitudes: float32's own error, where a sum cancels to nearly nothing


def assert_near(output: Tensor, expected: Tensor, magnitudes: Tensor | None = None) -> None:
    """``output`` is ``expected`` but for rounding; ``magnitudes`` are the sums of the terms' magnitudes, if known."""
    assert output.shape == expected.shape
    if not expected.numel():
        return
    allowed = NEAR * float(expected.abs().max())
    if magnitudes is not None:
        allowed = max(allowed, ROUNDING * float(magnitudes.max()))
    error = float((output.double() - expected.double()).abs().max())
    assert error <= allowed, f'{error:.3g} off, {allowed:.3g} allowed'
