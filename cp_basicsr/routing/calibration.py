"""Calibration: the policy's price for each budget, found on held-out patches and kept in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .choice import DEFAULT_TILE, RoutingChoice
from .policy import fit_price

POINTS = 65
# The mean cost of so many predictions is known to about 0.3 % of the dense MACs; more only take time.
MAX_ROWS = 16384
SCOPES = ('tile', 'image')


class Calibration(nn.Module):
    """Price against budget, one curve for routing by tile and one for routing whole images. Buffers only.

    Budgets of the curve are shares of the span between the sparsest and the densest level, so that the curve holds for
    images of any shape although border effects shift the levels' costs a little.

    Args:
        tile: side of a tile in lq pixels until calibration says otherwise; None for whole images.

    Attributes:
        tile_prices, image_prices: float64 ``[POINTS]``; NaN until fitted.
        budget: the budget the network was trained for, share of the dense MACs; NaN until known.
        tile: side of the tiles it was trained for in lq pixels; 0 for whole images.
    """

    def __init__(self, tile: int | None = DEFAULT_TILE) -> None:
        super().__init__()
        for scope in SCOPES:
            self.register_buffer(f'{scope}_prices', torch.full((POINTS,), float('nan'), dtype=torch.float64))
        self.register_buffer('budget', torch.tensor(float('nan'), dtype=torch.float64))
        self.register_buffer('tile', torch.tensor(tile or 0))

    def trained_choice(self) -> RoutingChoice:
        """How a network that is called without further words routes: at its trained budget, or by plain argmax."""
        budget = float(self.budget)
        return RoutingChoice(budget=None if math.isnan(budget) else budget, tile=int(self.tile) or None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Calibration:
        """Move between devices only: ``net.half()`` must not round prices and budgets."""
        return super()._apply(lambda t: t.to(fn(torch.empty(0, dtype=t.dtype, device=t.device)).device), recurse)

    def is_fitted(self, scope: str) -> bool:
        """Whether the curve of ``'tile'`` or ``'image'`` routing has been found."""
        return bool(torch.isfinite(self._curve(scope)).all())

    def fit(self, scope: str, log_probs: Tensor, costs: Tensor) -> None:
        """Find the curve.

        Args:
            scope: ``'tile'`` or ``'image'``.
            log_probs: ``[n, L]`` predictions on held-out patches.
            costs: ``[L]`` share of the dense MACs of each level, classifier excluded.
        """
        log_probs, costs = log_probs[:: -(-len(log_probs) // MAX_ROWS)].cpu(), costs.cpu()
        span = torch.linspace(0, 1, POINTS, dtype=torch.float64)
        budgets = costs[0] + span * (costs[-1] - costs[0])
        prices = [fit_price(log_probs, costs, float(budget)) for budget in budgets]
        # Beyond the largest price that changes any choice the curve would jump to the search limit.
        limit = _decisive_price(log_probs, costs)
        self._curve(scope).copy_(torch.tensor(prices, dtype=torch.float64).clamp(-limit, limit))

    def price(self, scope: str, budget: float, costs: Tensor) -> float:
        """Interpolated price for a budget (share of the dense MACs, classifier excluded).

        It is one for costs whose span is that of the costs it was fitted with, whatever that of ``costs``.
        """
        low, high = float(costs[0]), float(costs[-1])
        position = min(max((budget - low) / (high - low), 0.0), 1.0) * (POINTS - 1)
        index = min(int(position), POINTS - 2)
        left, right = self._curve(scope)[index : index + 2].tolist()
        return left + (right - left) * (position - index)

    def _curve(self, scope: str) -> Tensor:
        return getattr(self, f'{scope}_prices')


def _decisive_price(log_probs: Tensor, costs: Tensor) -> float:
    """A price at which every tile has settled: the widest gap of log-probabilities over the narrowest of costs."""
    gap = float((log_probs.amax(dim=1) - log_probs.amin(dim=1)).max())
    step = float(costs.double().diff().min())
    return (gap + 1.0) / step
