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


def budget_crossing(logits: Tensor, costs: Tensor, budget: float) -> float:
    """The price at which rows of ``softmax(logits - price * costs)`` cost ``budget`` on average."""
    low, high = -1e6, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        if float(((logits - middle * costs).softmax(dim=1) @ costs).mean()) > budget:
            low = middle
        else:
            high = middle
    return low


def priced_cross_entropy(logits: Tensor, predicted: Tensor, costs: Tensor, of_all: Tensor | None = None) -> float:
    """Mean over six budgets of the cross-entropy of predictions with targets, both as they are at the budget's price.

    Args:
        logits: of the target, ``[n, L]``.
        predicted: log-probabilities ``[n, L]``.
        costs: ``[L]``.
        of_all: logits that the prices are found with; None takes ``logits``.
    """
    losses = []
    for share in (0.1, 0.2, 0.3, 0.4, 0.55, 0.7):
        budget = float(costs[0] + share * (costs[-1] - costs[0]))
        price = budget_crossing(logits if of_all is None else of_all, costs, budget)
        for row, own in zip(logits.double(), predicted.double(), strict=True):
            weights = [
                math.exp(float(row[k] - price * costs[k] - (row - price * costs).max())) for k in range(len(costs))
            ]
            scores = [float(own[k] - price * costs[k] - (own - price * costs).max()) for k in range(len(costs))]
            normaliser = math.log(sum(math.exp(score) for score in scores))
            losses.append(
                -sum(q / sum(weights) * (score - normaliser) for q, score in zip(weights, scores, strict=True))
            )
    return sum(losses) / len(losses)


def errors_of(gt: Tensor, outputs: list[Tensor], side: int | None) -> list[Tensor]:
    """Error to expect of each level on each tile of ``side`` gt pixels of each patch: float64 ``[L, tiles]``.

    The densest level's mean squared error, and the level's mean squared distance to it.
    """
    errors = []
    for index, image in enumerate(gt):
        dense = outputs[-1][index].detach().double()
        of_dense = (dense - image.double()).square().mean(dim=0)
        squares = [of_dense + (output[index].detach().double() - dense).square().mean(dim=0) for output in outputs]
        step = side or max(image.shape[1:])
        corners = itertools.product(range(0, image.shape[1], step), range(0, image.shape[2], step))
        errors.append(torch.stack([
            torch.stack([square[y : y + step, x : x + step].mean() for square in squares]) for y, x in corners
        ], dim=1))  # fmt: skip
    return errors


def worth_of(errors: Tensor, by_tile: bool, set_mse: float) -> Tensor:
    """In dB ``[tiles, L]``: the PSNR of a patch routed as a whole, or the picture's by one tile, to first order."""
    if not by_tile:
        return -10 * torch.log10(errors.T)
    scale = (float(errors[-1].mean()) * set_mse) ** 0.5
    return torch.stack([-10 / math.log(10) * (column - column[-1]) / scale for column in errors.T])
