"""Measured difficulty targets: every level is run on a patch, so which one pays is known, not guessed."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .policy import PRICE_LIMIT

# 60 dB: an 8-bit image rounds away anything finer, and a flat patch must not weigh without bound.
MIN_MSE = 1e-6
ETA_LIMITS = (1e-3, 1e3)
BISECTIONS = 40


def tile_mse(output: Tensor, gt: Tensor, tile: int) -> Tensor:
    """Mean squared error of each tile.

    Args:
        output, gt: ``[B, C, H, W]``.
        tile: side of a tile in gt pixels; tiles at the border may be cut.

    Returns:
        ``[B, ceil(H/tile), ceil(W/tile)]``.
    """
    error = (output - gt).square().mean(dim=1, keepdim=True)
    return F.avg_pool2d(error, tile, stride=tile, ceil_mode=True, count_include_pad=False).squeeze(1)


def patch_psnr(mse: Tensor) -> Tensor:
    """What the level of a tile is worth to its whole patch, in dB for one tile's share of the patch's MACs.

    With n tiles: n times the PSNR of the patch when this tile runs at level k and the others at the densest. A tile's
    own PSNR would not do: the densest level halves the error of a smooth tile, which the picture hardly notices, and so
    wins the tiles where it matters least. On CBSD68 at sigma 25, levels 1, 2, 4 of 4, 75 % of the MACs, a classifier
    trained towards the tiles' own PSNR gave 31.01 dB, random routing 31.03, one trained towards this 31.04, the oracle
    31.16.

    Args:
        mse: ``[B, L, rows, columns]`` of images in [0, 1], the densest level last; cut tiles count as whole ones.

    Returns:
        float64 shaped like ``mse``; with a single tile the PSNR of each level.
    """
    mse = mse.double()
    tiles = mse.shape[-2] * mse.shape[-1]
    dense = mse[:, -1:]
    patch = dense.mean(dim=(2, 3), keepdim=True) + (mse - dense) / tiles
    return -10 * tiles * patch.clamp_min(MIN_MSE).log10()


def tile_worth(mse: Tensor, set_mse: float) -> Tensor:
    """What the level of a tile is worth to its whole picture, in dB for one tile's share of the picture's MACs.

    To first order ``-10 / ln(10) * (mse_k - mse_dense) / E``, E being the picture's mean error at the densest level. A
    training patch is too small to tell E, so it is taken for the geometric mean of the patch's and the whole set's.
    M6C40 x2, six levels of 8, share of the oracle's gain on BSD100 / Set14 / Test2K crops at half the MACs: with the
    patch's alone (:func:`patch_psnr`) 30 / 24 / 37 %, with the set's alone 44 / 31 / 48 %, with this 40 / 30 / 51 %;
    and where images differ in noise, the set's alone would spend everything on the noisy ones.

    Args:
        mse: ``[B, L, rows, columns]``, the densest level last.
        set_mse: mean error at the densest level of all patches.

    Returns:
        Shaped like ``mse``, 0 at the densest level.
    """
    dense = mse[:, -1:]
    error = (dense.mean(dim=(2, 3), keepdim=True).clamp_min(MIN_MSE) * max(set_mse, MIN_MSE)).sqrt()
    return -10 / math.log(10) * (mse - dense) / error


def soft_oracle(psnr: Tensor, costs: Tensor, eta: float, tau: float) -> Tensor:
    """``softmax((eta * PSNR_k - cost_k) / tau)`` over the levels, as log-probabilities: they must not underflow.

    Args:
        psnr: ``[n, L]`` in dB, from :func:`tile_worth` or :func:`patch_psnr`; only differences count.
        costs: ``[L]`` share of the dense MACs.
        eta: what a decibel is worth, in shares of the dense MACs.
        tau: temperature, in shares of the dense MACs.

    Returns:
        ``[n, L]``.
    """
    return ((eta * psnr - costs) / tau).log_softmax(dim=1)


def at_price(log_probs: Tensor, costs: Tensor, price: float) -> Tensor:
    """The log-probabilities ``[n, L]`` that go with the policy's choice at a price of MACs: ``log P_k - price * c_k``,
    normalised.
    """
    return (log_probs - price * costs).log_softmax(dim=1)


def price_psnr(psnr: Tensor, costs: Tensor, budget: float, tau: float) -> float:
    """The ``eta`` at which the mean expected cost of the soft oracle meets ``budget`` (bisection on log eta).

    Args and units as in :func:`soft_oracle`. Where no eta meets the budget, the nearer limit of ETA_LIMITS.
    """
    low, high = (math.log(limit) for limit in ETA_LIMITS)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        eta = math.exp(middle)
        if float((soft_oracle(psnr, costs, eta, tau).exp() @ costs).mean()) < budget:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def price_cost(log_probs: Tensor, costs: Tensor, budget: float) -> float:
    """The price of MACs at which the mean expected cost of ``[n, L]`` log-probabilities meets ``budget`` (bisection).

    Where none does, the nearer of +-PRICE_LIMIT.
    """
    low, high = -PRICE_LIMIT, PRICE_LIMIT
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if float((at_price(log_probs, costs, middle).exp() @ costs).mean()) > budget:
            low = middle
        else:
            high = middle
    return (low + high) / 2
