"""Measured difficulty targets: every level is run on a patch, so which one pays is known, not guessed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# 60 dB: an 8-bit image rounds away anything finer, and a flat tile must not weigh without bound.
MIN_MSE = 1e-6
ETA_LIMITS = (1e-3, 1e3)
BISECTIONS = 40


def tile_psnr(output: Tensor, gt: Tensor, tile: int) -> Tensor:
    """PSNR of each tile in dB, for images in [0, 1].

    Args:
        output, gt: ``[B, C, H, W]``.
        tile: side of a tile in gt pixels; tiles at the border may be cut.

    Returns:
        ``[B, ceil(H/tile), ceil(W/tile)]``.
    """
    error = (output - gt).square().mean(dim=1, keepdim=True)
    mse = F.avg_pool2d(error, tile, stride=tile, ceil_mode=True, count_include_pad=False).squeeze(1)
    return -10 * mse.clamp_min(MIN_MSE).log10()


def soft_oracle(psnr: Tensor, costs: Tensor, eta: float, tau: float) -> Tensor:
    """``softmax((eta * PSNR_k - cost_k) / tau)`` over the levels.

    Args:
        psnr: ``[n, L]`` in dB.
        costs: ``[L]`` share of the dense MACs.
        eta: what a decibel is worth, in shares of the dense MACs.
        tau: temperature, in shares of the dense MACs.

    Returns:
        ``[n, L]``, rows sum to 1.
    """
    return ((eta * psnr - costs) / tau).softmax(dim=1)


def price_psnr(psnr: Tensor, costs: Tensor, budget: float, tau: float) -> float:
    """The ``eta`` at which the mean expected cost of the soft oracle meets ``budget`` (bisection on log eta).

    Args and units as in :func:`soft_oracle`. Where no eta meets the budget, the nearer limit of ETA_LIMITS.
    """
    low, high = (torch.tensor(limit).log().item() for limit in ETA_LIMITS)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        eta = float(torch.tensor(middle).exp())
        if float((soft_oracle(psnr, costs, eta, tau) @ costs).mean()) < budget:
            low = middle
        else:
            high = middle
    return float(torch.tensor((low + high) / 2).exp())
