"""The two auxiliary losses of the classifier and its measured target."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from cp_basicsr.options import check_number
from cp_basicsr.routing import at_price, price_cost, price_psnr, soft_oracle

from .across_processes import gather_over_processes, mean_over_processes

# Shares of the span between the costs of the sparsest and the densest level.
SPAN_SHARES = (0.1, 0.2, 0.3, 0.4, 0.55, 0.7)
# The one at which eta is solved. A soft target spends some MACs whatever the tiles are worth (tau 0.5, six levels of 8:
# 0.24 of the span); solved for a run's budget below or near that, eta is next to nothing and all tiles look alike. So
# it was with a small SwinIR, whose attention spends a fifth of the MACs at every level, at half the MACs.
TARGET_SHARE = 0.4


class PredictionLoss(nn.Module):
    """A loss of predictions and the levels' costs.

    Args:
        loss_weight: weight of the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight


@LOSS_REGISTRY.register()
class BudgetLoss(PredictionLoss):
    """The mean expected cost of the batch meets the target: ``|mean_i sum_k P_ik c_k - c*| / c*``.

    Args:
        target: c*, share of the dense MACs, classifier included.
        loss_weight: weight of the loss.
    """

    def __init__(self, target: float, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.target = check_number(target, 'train.budget_opt.target', 1e-3, 2)

    def forward(self, log_probs: Tensor, costs: Tensor) -> Tensor:
        """Loss of ``[n, L]`` log-probabilities with ``[L]`` costs (shares of the dense MACs): a scalar."""
        expected = mean_over_processes((log_probs.exp() @ costs.to(log_probs)).mean())
        return self.loss_weight * (expected - self.target).abs() / self.target


@LOSS_REGISTRY.register()
class ConfidenceLoss(PredictionLoss):
    """Each prediction decides: ``mean_i [(L-1) - sum_{a<b} |P_ia - P_ib|]``; 0 when every prediction is one-hot."""

    def forward(self, log_probs: Tensor, costs: Tensor) -> Tensor:
        """Loss of ``[n, L]`` log-probabilities (costs play no part): a scalar."""
        probs = log_probs.exp()
        gaps = sum((probs[:, a] - probs[:, b]).abs() for a, b in combinations(range(probs.shape[1]), 2))
        return self.loss_weight * (probs.shape[1] - 1 - gaps).mean()


@dataclass(frozen=True)
class Pricing:
    """What turns measured PSNR into targets, solved once on many tiles.

    Attributes:
        eta: what a decibel is worth, in shares of the dense MACs.
        tau: temperature, in shares of the dense MACs.
        price: of MACs, at which the target spends the run's budget; 0 where ``eta`` was given.
        prices: of MACs, at which the target spends the budgets of :data:`SPAN_SHARES`.
    """

    eta: float
    tau: float
    price: float
    prices: tuple[float, ...]


@LOSS_REGISTRY.register()
class SoftOracleLoss(nn.Module):
    """Cross-entropy with the measured soft oracle ``q = softmax((eta * PSNR_k - cost_k) / tau)``, at several budgets.

    The policy meets a budget with a price of MACs: it takes ``argmax_k (log P_k - price * c_k)``. So prediction and
    target are compared as they are at the prices of six budgets, mean of the six cross-entropies; at one alone the
    prediction says nothing about tiles that are far from a decision there. M6C40 x2, six levels of 8, share of the
    oracle's gain on BSD100 at 50, 40 and 30 % of the MACs: one price 38, 23, 12 %; six prices 44, 55, 65 %.

    Args:
        tau: temperature, in shares of the span between the costs of the sparsest and the densest level. In the same
            trial 0.1 gave 38, 47, 57 % and 0.5 44, 55, 65 %.
        eta: what a decibel is worth, in shares of the dense MACs; None solves it so that the target spends
            :data:`TARGET_SHARE` of the span, and then moves the target by a price to the budget of the run, so that it
            and BudgetLoss never pull apart.
        loss_weight: weight of the loss.
    """

    def __init__(self, tau: float = 0.5, eta: float | None = None, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.tau = check_number(tau, 'train.oracle_opt.tau', 1e-4, 100)
        self.eta = None if eta is None else check_number(eta, 'train.oracle_opt.eta', 0, 1e6)
        self.loss_weight = loss_weight

    def pricing(self, psnr: Tensor, costs: Tensor, budget: float) -> Pricing:
        """Solved on ``[n, L]`` PSNR in dB of each process (as many in each); ``budget`` is that of the run."""
        psnr, costs = gather_over_processes(psnr), costs.to(psnr)
        lowest, span = float(costs[0]), float(costs[-1] - costs[0])
        tau = self.tau * span
        eta = price_psnr(psnr, costs, lowest + TARGET_SHARE * span, tau) if self.eta is None else self.eta
        target = soft_oracle(psnr, costs, eta, tau)
        price = price_cost(target, costs, budget) if self.eta is None else 0.0
        target = at_price(target, costs, price)
        prices = tuple(price_cost(target, costs, lowest + share * span) for share in SPAN_SHARES)
        return Pricing(eta, tau, price, prices)

    def target(self, psnr: Tensor, costs: Tensor, pricing: Pricing) -> Tensor:
        """The soft oracle of measured ``[n, L]`` PSNR in dB: log-probabilities ``[n, L]``."""
        costs = costs.to(psnr)
        return at_price(soft_oracle(psnr, costs, pricing.eta, pricing.tau), costs, pricing.price)

    def forward(self, log_probs: Tensor, target: Tensor, costs: Tensor, pricing: Pricing) -> Tensor:
        """Cross-entropy of ``[n, L]`` log-probabilities with ``[n, L]`` of the target: a scalar."""
        costs = costs.to(target)
        losses = [
            -(at_price(target, costs, price).exp().to(log_probs) * at_price(log_probs, costs.to(log_probs), price))
            .sum(dim=1)
            .mean()
            for price in pricing.prices
        ]
        return self.loss_weight * torch.stack(losses).mean()
