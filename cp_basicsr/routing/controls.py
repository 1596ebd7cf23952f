"""Ways to route at equal cost that a classifier is measured by: random, by edges, by the true errors, or by those to
expect of somebody who has seen the outputs of all levels, but not the true image.

The last, ``informed``, takes the error of a tile at a level for the dense level's plus the squared distance of the two
outputs. That is its expectation if the dense output is the mean of all images that the input may show; then no router
that does not know the true image gains more on average, and what the oracle gains beyond it is luck.

Tiles may come from one image or from a whole set; their *weights* are shares of their image, so that the cost of a set
is the mean of its images', as in a table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .policy import levels_for_budget, spent_share

DEFAULT_CONTROLS = ('random', 'oracle', 'edge')
CONTROLS = (*DEFAULT_CONTROLS, 'informed')
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
SLACK = 1e-9  # of all tiles: what sums of weights may differ by


def edge_scores(lq: Tensor, tile: int | None) -> Tensor:
    """Mean absolute Laplacian of each tile, the score of ClassSR's and ARM's edge baselines.

    Args:
        lq: ``[B, C, H, W]`` or ``[B, T, C, H, W]``; channels and frames are averaged, the border is repeated.
        tile: side of a tile in pixels; None takes whole images.

    Returns:
        ``[B, rows, columns]``; tiles at the border may be cut.
    """
    gray = lq.flatten(1, -3).mean(dim=1, keepdim=True)
    edges = F.conv2d(F.pad(gray, (1,) * 4, mode='replicate'), LAPLACIAN.to(gray)[None, None]).abs()
    if tile is None:
        return edges.mean(dim=(1, 2, 3)).view(-1, 1, 1)
    return F.avg_pool2d(edges, tile, ceil_mode=True, count_include_pad=False).squeeze(1)


def levels_by_score(scores: Tensor, shares: Tensor, costs: Tensor, weights: Tensor, budget: float) -> Tensor:
    """The same share of each level, but harder tiles get denser levels; with random scores, random routing.

    Whole tiles do not fill the shares exactly, and the budget may hold a classifier that a score does not need: what is
    left of it lifts the hardest tiles below the densest level by one.

    Args:
        scores: ``[n]``, higher is harder; of equal ones the first is taken for the harder.
        shares: ``[L]`` share of the weight that each level has on the route to be matched.
        costs: ``[L]`` share of the dense MACs that each level spends, rising.
        weights: ``[n]`` weight of each tile.
        budget: share of the dense MACs that may be spent.

    Returns:
        long ``[n]``; it spends at most the budget if ``shares`` does.
    """
    costs, weights = costs.double(), weights.double()
    order = scores.argsort(descending=True, stable=True)
    filled = weights[order].cumsum(0) / weights.sum()
    thresholds = shares.double().flip(0).cumsum(0) + SLACK
    densest = len(costs) - 1
    sorted_levels = densest - torch.searchsorted(thresholds, filled).clamp(max=densest)
    lifted = (sorted_levels + 1).clamp(max=densest)
    extra = (costs[lifted] - costs[sorted_levels]) * weights[order]
    room = (budget - spent_share(sorted_levels, costs, weights[order])) * weights.sum()
    affordable = extra.cumsum(0) <= room
    levels = torch.empty_like(sorted_levels)
    levels[order] = torch.where(affordable, lifted, sorted_levels)
    return levels


def oracle_levels(errors: Tensor, costs: Tensor, weights: Tensor, budget: float) -> Tensor:
    """The levels that known errors ask for: the least weighted error that the budget buys, to within one tile.

    Solved with a Lagrangian price. A denser level that does not restore a tile better is not taken, so less than the
    budget may be spent.

    Args:
        errors: ``[n, L]`` mean squared error of each tile at each level. Where tiles of several images compete, divide
            each image's by its mean: that maximises the images' mean PSNR, to first order. What is added to all
            levels of a tile changes nothing.
        costs, weights, budget: as in :func:`levels_by_score`.

    Returns:
        long ``[n]``.
    """
    best = errors.argmin(dim=1)
    if spent_share(best, costs, weights) <= budget:
        return best
    return levels_for_budget(-errors.double(), costs, budget, weights)
