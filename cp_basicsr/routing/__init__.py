"""From predictions and a budget to levels: policy, calibration, measured targets, pictures of level maps."""

from .calibration import Calibration
from .policy import BudgetError, fit_price, levels_at_price, levels_for_budget, spent_share
from .targets import patch_psnr, price_psnr, soft_oracle, tile_mse

__all__ = [
    'BudgetError',
    'Calibration',
    'fit_price',
    'levels_at_price',
    'levels_for_budget',
    'patch_psnr',
    'price_psnr',
    'soft_oracle',
    'spent_share',
    'tile_mse',
]
