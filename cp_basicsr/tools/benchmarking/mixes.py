"""Level maps that spend a budget, drawn at random: the hardest case for a level map, neighbours differ most."""

from __future__ import annotations

import torch
from torch import Tensor

SEED = 0
_STEEPEST = 1e3  # tilts the shares so far that one level takes all
_BISECTIONS = 60


def level_shares(costs: Tensor, budget: float) -> Tensor:
    """Shares of the tiles at each level that spend ``budget``, as even as the budget allows.

    ``share_k ~ exp(-price * cost_k)``: of all shares with this mean cost, those of the largest entropy. Budgets beyond
    the cheapest or the dearest level give that level alone.

    Args:
        costs: ``[L]`` share of the dense MACs of each level, rising.
        budget: share of the dense MACs.

    Returns:
        float64 ``[L]``, sum 1.
    """
    costs = costs.double()
    low, high = -_STEEPEST, _STEEPEST
    for _ in range(_BISECTIONS):
        price = (low + high) / 2
        shares = torch.softmax(-price * costs, dim=0)
        low, high = (low, price) if float(shares @ costs) < budget else (price, high)
    return torch.softmax(-high * costs, dim=0)


def drawn_map(size: tuple[int, int], tile: int, costs: Tensor, budget: float) -> Tensor:
    """A map for an image of ``size``, the same at every call: long ``[1, rows, columns]``.

    The number of tiles at each level is fixed (to whole tiles), their places are drawn.
    """
    rows, columns = (-(-side // tile) for side in size)
    ends = (level_shares(costs, budget).cumsum(0) * rows * columns).round().long()
    levels = torch.searchsorted(ends, torch.arange(rows * columns), right=True)
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(SEED))
    return levels[order].view(1, rows, columns)
