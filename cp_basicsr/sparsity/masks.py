"""Nested ranks and masks: rank |w| once in each group, a level keeps the ranks below its N."""

from __future__ import annotations

import torch
from torch import Tensor

from .pattern import NMPattern


def weight_ranks(weight: Tensor, m: int) -> Tensor:
    """Rank of each weight's magnitude within its group of ``m`` consecutive input channels.

    Args:
        weight: ``[out, in, *kernel]``, any floating dtype.
        m: group length M. The last ``in % m`` channels form a remainder group of their own.

    Returns:
        uint8 tensor shaped like ``weight``; 0 is the largest magnitude of a group, equal magnitudes go by channel.
    """
    out_width, in_width = weight.shape[:2]
    padding = -in_width % m
    magnitude = weight.detach().abs().reshape(out_width, in_width, -1)
    if padding:
        # Below every magnitude, so that the padding takes the last ranks of the remainder group.
        filler = magnitude.new_full((out_width, padding, magnitude.shape[2]), -1.0)
        magnitude = torch.cat([magnitude, filler], dim=1)
    groups = magnitude.reshape(out_width, -1, m, magnitude.shape[2])
    order = groups.argsort(dim=2, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(2, order, torch.arange(m, device=order.device).view(1, 1, m, 1).expand_as(order))
    return ranks.to(torch.uint8).reshape(out_width, -1, magnitude.shape[2])[:, :in_width].reshape(weight.shape)


def level_mask(ranks: Tensor, pattern: NMPattern, level: int) -> Tensor:
    """Mask of a level: True where a weight is kept.

    Args:
        ranks: ``[out, in, *kernel]`` from :func:`weight_ranks`.
        pattern: the layer's pattern.
        level: level index, 0 the sparsest.

    Returns:
        bool tensor shaped like ``ranks``.
    """
    in_width = ranks.shape[1]
    remainder = in_width % pattern.m
    thresholds = torch.full((in_width,), pattern.levels[level], dtype=torch.int16, device=ranks.device)
    if remainder:
        thresholds[in_width - remainder :] = pattern.kept_in_group(pattern.levels[level], remainder)
    return ranks < thresholds.view(1, -1, *[1] * (ranks.dim() - 2))
