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
ROUNDING = 1e-12  # of shares of the dense MACs that are sums over the tiles


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


def _turning_prices(log_probs: Tensor, costs: Tensor) -> Tensor:
    """Float64 ``[L - 1, n]``: below the k-th price a tile takes a level above k, at it and beyond k or a sparser one.

    Of levels i < j the denser wins below ``(log P_j - log P_i) / (c_j - c_i)``. Some level above k wins against all of
    the others below the largest, over those above, of the smallest such price, over the others. NaN: it never does.
    """
    scores, costs = log_probs.double().T.contiguous(), costs.double()
    rows = []
    for k in range(1, len(costs)):
        gains = (scores[k:, None] - scores[None, :k]) / (costs[k:, None] - costs[None, :k])[..., None]
        rows.append(gains.amin(dim=1).amax(dim=0))
    return torch.stack(rows).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _crossing(turning: Tensor, costs: Tensor, budget: float, areas: Tensor | None) -> float:
    """As :func:`fit_price`, from the tiles' turning prices."""
    costs = costs.double()
    weights = turning.new_ones(turning.shape[1]) if areas is None else areas.double()
    prices, order = turning.flatten().sort(descending=True)
    steps = (costs.diff()[:, None] * (weights / weights.sum())).flatten()[order]
    below = costs[0] + steps.cumsum(0)  # the share just below each price
    kept = int(torch.searchsorted(below, budget + ROUNDING, right=True))
    return -PRICE_LIMIT if kept == len(below) else float(prices[kept].clamp(-PRICE_LIMIT, PRICE_LIMIT))


def fit_price(log_probs: Tensor, costs: Tensor, budget: float, areas: Tensor | None = None) -> float:
    """The price at which the spent share crosses ``budget``.

    Args:
        log_probs: ``[n, L]``.
        costs: ``[L]``.
        budget: share of the dense MACs, classifier excluded.
        areas: weight of each tile, or None.

    Returns:
        The lowest price at which the share is at most the budget; the lowest of all where even the densest choice
        everywhere stays below it.
    """
    return _crossing(_turning_prices(log_probs, costs), costs, budget, areas)


def levels_for_budget(log_probs: Tensor, costs: Tensor, budget: float, areas: Tensor | None = None) -> Tensor:
    """Levels that meet a budget on these very tiles, to within one tile.

    Tiles with equal predictions (a flat sky) change level at one price; of those the first in raster order are given
    the denser level until the budget is used up, and the next one whichever level comes nearest to it.

    Args and units as in :func:`fit_price`.

    Returns:
        long ``[n]``.
    """
    turning = _turning_prices(log_probs, costs)
    price = _crossing(turning, costs, budget, areas)
    cheap, dear = (turning > price).sum(dim=0), (turning >= price).sum(dim=0)
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
        remedy = 'add sparser levels to network_g.sparsity.levels and train again'
        if costs[-1] > 1 + ROUNDING:
            remedy = 'cut larger tiles with less overlap (val.tile): every pixel that tiles share is computed twice'
        raise BudgetError(
            f'{where} is {budget}, outside what the levels allow: {lowest:.3f} (every tile at the sparsest level) to '
            f'{highest:.3f} (every tile dense), classifier included. Choose a budget in this range, or {remedy}.'
        )
