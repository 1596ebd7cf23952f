"""Losses for BasicSR's LOSS_REGISTRY: budget, confidence, measured soft oracle, and ClassSR's two."""
