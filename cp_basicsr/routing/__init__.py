"""From predictions and a budget to levels: policy, calibration, measured targets, pictures of level maps."""

from .calibration import Calibration
from .policy import BudgetError, fit_price, levels_at_price, levels_for_budget, spent_share
from .targets import at_price, patch_psnr, price_cost, price_psnr, soft_oracle, tile_mse, tile_worth

__all__ = [
    'BudgetError',
    'Calibration',
    'at_price',
    'fit_price',
    'levels_at_price',
    'levels_for_budget',
    'patch_psnr',
    'price_cost',
    'price_psnr',
    'soft_oracle',
    'spent_share',
    'tile_mse',
    'tile_worth',
]
