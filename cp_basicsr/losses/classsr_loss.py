"""ClassSR's two losses of its classifier, to compare with."""

from __future__ import annotations

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from .across_processes import mean_over_processes
from .routing_loss import ConfidenceLoss, PredictionLoss


@LOSS_REGISTRY.register()
class ClassSRClassLoss(ConfidenceLoss):
    """ClassSR's class loss (CVPR 2021, eq. 4 with M classes): the same formula as ConfidenceLoss, by its first name."""


@LOSS_REGISTRY.register()
class ClassSRAverageLoss(PredictionLoss):
    """ClassSR's average loss (CVPR 2021, eq. 5): every class takes the same number of patches.

    ``sum_k |sum_i P_ik - n/L| / (4n/L)``, n patches and L classes: the authors' code (average_loss_2class and
    average_loss_3class of codes/models/modules/loss.py) divides the paper's sum so. It knows no costs, which is why its
    budget cannot be chosen.
    """

    def forward(self, log_probs: Tensor, costs: Tensor) -> Tensor:
        """Loss of ``[n, L]`` log-probabilities (costs play no part): a scalar."""
        shares = mean_over_processes(log_probs.exp().mean(dim=0))
        classes = shares.numel()
        return self.loss_weight * (shares - 1 / classes).abs().sum() * classes / 4
