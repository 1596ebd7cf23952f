"""The policy: one scalar, the price of a MAC, turns class predictions into levels.

A tile takes ``argmax_k (log P_k - price * c_k)``. With the classifier trained towards
``softmax((eta*PSNR_k - cost_k)/tau)`` its log-probabilities are utilities up to a constant, so another price is another
point of the same trade. The spent share of the dense MACs never grows with the price; price 0 is plain argmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

# log-probabilities of a float32 softmax span less than 104; costs of two levels differ by far more than 1e-4.
PRICE_LIMIT = 1e6
BISECTIONS = 80


class BudgetError(ValueError):
    """The budget cannot be met with these levels; the message says the range that can."""


def levels_at_price(log_probs: Tensor, costs: Tensor, price: float) -> Tensor:
    """Level of each tile at a price.

    Args:
        log_probs: ``[n, L]`` log-probabilities of the levels.
        costs: ``[L]`` share of the dense MACs that each level spends, rising.
        price: the scalar; equal scores go to the sparser level.

    Returns:
        long ``[n]``.
    """
    return (log_probs.double() - price * costs.double()).argmax(dim=1)


def spent_share(levels: Tensor, costs: Tensor, areas: Tensor | None = None) -> float:
    """Mean cost of the chosen levels, weighted by the tiles' areas (equal when None)."""
    chosen = costs.double()[levels]
    if areas is None:
        return float(chosen.mean())
    return float((chosen * areas).sum() / areas.sum())


def fit_price(log_probs: Tensor, costs: Tensor, budget: float, areas: Tensor | None = None) -> tuple[float, float]:
    """The two neighbouring prices between which the spent share crosses ``budget``.

    Args:
        log_probs: ``[n, L]``.
        costs: ``[L]``.
        budget: share of the dense MACs, classifier excluded.
        areas: weight of each tile, or None.

    Returns:
        ``(cheap, dear)``: at ``cheap`` the share is at most the budget, at ``dear`` it is above it, unless even the
        densest choice everywhere stays below; then both are the lowest price.
    """
    low, high = -PRICE_LIMIT, PRICE_LIMIT
    if spent_share(levels_at_price(log_probs, costs, low), costs, areas) <= budget:
        return low, low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if spent_share(levels_at_price(log_probs, costs, middle), costs, areas) <= budget:
            high = middle
        else:
            low = middle
    return high, low


def levels_for_budget(log_probs: Tensor, costs: Tensor, budget: float, areas: Tensor | None = None) -> Tensor:
    """Levels that meet a budget on these very tiles, to within one tile.

    Tiles with equal predictions (a flat sky) change level at one price; of those the first in raster order are given
    the denser level until the budget is used up, and the next one whichever level comes nearest to it.

    Args and units as in :func:`fit_price`.

    Returns:
        long ``[n]``.
    """
    cheap_price, dear_price = fit_price(log_probs, costs, budget, areas)
    cheap = levels_at_price(log_probs, costs, cheap_price)
    dear = levels_at_price(log_probs, costs, dear_price)
    weights = torch.ones_like(cheap, dtype=torch.float64) if areas is None else areas.double()
    extra = (costs.double()[dear] - costs.double()[cheap]) * weights
    room = (budget - spent_share(cheap, costs, areas)) * float(weights.sum())
    affordable = extra.cumsum(0) <= room
    levels = torch.where(affordable, dear, cheap)
    undecided = ((extra > 0) & ~affordable).nonzero().flatten()[:1]
    for tile in undecided.tolist():
        left = (room - float(extra[affordable].sum())) / float(weights[tile])
        between = costs[int(cheap[tile]) : int(dear[tile]) + 1].double()
        levels[tile] = cheap[tile] + (between - between[0] - left).abs().argmin()
    return levels


def check_budget(budget: float, costs: Tensor, overhead: float, where: str = 'val.budget') -> None:
    """Refuse a budget that no mix of levels can meet.

    Args:
        budget: requested share of the dense MACs.
        costs: ``[L]`` share of each level.
        overhead: share that the classifier spends.
        where: option path for the message.

    Raises:
        BudgetError: naming the budget and the range from the sparsest to the densest level, classifier included.
    """
    lowest, highest = float(costs[0]) + overhead, float(costs[-1]) + overhead
    if not lowest <= budget <= highest:
        raise BudgetError(
            f'{where} is {budget}, outside what the levels allow: {lowest:.3f} (every tile at the sparsest level) to '
            f'{highest:.3f} (every tile dense), classifier included. Choose a budget in this range, or add sparser '
            'levels to network_g.sparsity.levels and train again.'
        )
