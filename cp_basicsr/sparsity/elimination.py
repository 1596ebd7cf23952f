"""Which weights a sparse level keeps: those left after removing, again and again, the one that is missed least.

A row of weights ``w`` with the mean products ``H`` of its inputs loses ``w_p^2 / [H^-1]_pp`` in mean squared output
when weight ``p`` goes and the others make up for it as well as they can, by ``-w_p [H^-1]_p / [H^-1]_pp`` (optimal
brain surgeon, NIPS 1992; row by row with exact updates as in Optimal Brain Compression, arXiv 2208.11580).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Values of the inverses that are worked on together, in float64 32 MB: they are read and written once for every weight
# removed, and should stay in a processor's cache.
TOGETHER = 2**22


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
    """As :func:`eliminate`, for rows that are worked on together."""
    count = len(kept)
    row = torch.arange(count, device=kept.device)
    columns = kept.nonzero()[:, 1].view(count, -1)
    inverse = torch.linalg.inv(gram[columns[:, :, None], columns[:, None, :]])
    weight = (inverse @ cross.gather(1, columns)[:, :, None])[:, :, 0]
    group = groups[columns]
    excess = torch.zeros(count, len(quota), dtype=torch.long, device=kept.device)
    excess.scatter_add_(1, group, torch.ones_like(group)).sub_(quota)
    gone = torch.zeros_like(columns, dtype=torch.bool)
    for _ in range(int(excess[0].sum())):
        loss = weight.square() / inverse.diagonal(dim1=1, dim2=2)
        least = loss.masked_fill_(gone | (excess.gather(1, group) == 0), torch.inf).argmin(dim=1)
        direction = inverse[row, least]
        own = direction[row, least]
        weight -= direction * (weight[row, least] / own)[:, None]
        direction = direction / own.sqrt()[:, None]
        inverse.baddbmm_(direction[:, :, None], direction[:, None, :], alpha=-1)
        inverse[row, least, least] = 1  # rounding leaves a zero there, which would be divided by
        gone[row, least] = True
        excess[row, group[row, least]] -= 1
    return kept.scatter(1, columns, ~gone)
