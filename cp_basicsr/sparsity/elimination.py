"""Which weights a sparse level keeps: those left after removing, again and again, the one that is missed least.

A row of weights ``w`` with the mean products ``H`` of its inputs loses ``w_p^2 / [H^-1]_pp`` in mean squared output
when weight ``p`` goes and the others make up for it as well as they can, by ``-w_p [H^-1]_p / [H^-1]_pp`` (optimal
brain surgeon, NIPS 1992; row by row with exact updates as in Optimal Brain Compression, arXiv 2208.11580).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Values of the inverses that are worked on together, in float64 32 MB.
TOGETHER = 2**22
# Removals after which the inverses are brought up to date, by one product of matrices: after each of them all inverses
# would go through memory. A layer of 64 channels, levels 48, 32 and 16 of 64, one thread: 6.6 s, so 2.0 s.
BLOCK = 32


@torch.no_grad()
def eliminate(gram: Tensor, cross: Tensor, kept: Tensor, groups: Tensor, quota: Tensor) -> Tensor:
    """Remove weights from every row until each group keeps its quota.

    Args:
        gram: float64 ``[K, K]``, mean products of the inputs, positive definite; the same for all rows.
        cross: float64 ``[rows, K]``, mean products of the inputs with the output that each row is to give.
        kept: bool ``[rows, K]``, the weights that are there; as many in every row, and no group below its quota.
        groups: long ``[K]``, the group of each weight.
        quota: long ``[groups]``, weights that remain in each group of each row.

    Returns:
        bool ``[rows, K]``: the weights that remain.
    """
    remaining = kept.clone()
    for rows in torch.arange(len(kept), device=kept.device).split(max(TOGETHER // int(kept[0].sum()) ** 2, 1)):
        remaining[rows] = _eliminate(gram, cross[rows], kept[rows], groups, quota)
    return remaining


def _eliminate(gram: Tensor, cross: Tensor, kept: Tensor, groups: Tensor, quota: Tensor) -> Tensor:
    """As :func:`eliminate`, for rows that are worked on together.

    ``inverse`` lags behind: what the last removals take from it is kept in ``pending`` until there is a block of them,
    and only the row and the diagonal that a removal asks for are brought up to date.
    """
    count = len(kept)
    row = torch.arange(count, device=kept.device)
    columns = kept.nonzero()[:, 1].view(count, -1)
    inverse = _inverses(gram, columns)
    weight = (inverse @ cross.gather(1, columns)[:, :, None])[:, :, 0]
    group = groups[columns]
    excess = torch.zeros(count, len(quota), dtype=torch.long, device=kept.device)
    excess.scatter_add_(1, group, torch.ones_like(group)).sub_(quota)
    gone = torch.zeros_like(columns, dtype=torch.bool)
    diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
    pending = inverse.new_empty(count, BLOCK, columns.shape[1])
    for removal in range(int(excess[0].sum())):
        loss = weight.square() / diagonal
        least = loss.masked_fill_(gone | (excess.gather(1, group) == 0), torch.inf).argmin(dim=1)
        waiting = pending[:, : removal % BLOCK]
        direction = inverse[row, least] - (waiting[row, :, least][:, None] @ waiting)[:, 0]
        own = direction[row, least]
        weight -= direction * (weight[row, least] / own)[:, None]
        direction /= own.sqrt()[:, None]
        pending[:, removal % BLOCK] = direction
        diagonal -= direction.square()
        if removal % BLOCK == BLOCK - 1:
            inverse.baddbmm_(pending.mT, pending, alpha=-1)
            diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
        gone[row, least] = True
        diagonal[gone] = 1  # rounding leaves next to nothing there, which would be divided by
        excess[row, group[row, least]] -= 1
    return kept.scatter(1, columns, ~gone)


def _inverses(gram: Tensor, columns: Tensor) -> Tensor:
    """The inverse of the products of each row's own columns: ``[rows, k, k]`` from ``[rows, k]`` of ``[K, K]``."""
    own = columns[:1] if columns.eq(columns[0]).all() else columns
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[own[:, :, None], own[:, None, :]]))
    return inverse.expand(len(columns), -1, -1).clone() if len(own) < len(columns) else inverse
