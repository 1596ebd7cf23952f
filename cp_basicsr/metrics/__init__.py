"""Metrics for BasicSR's METRIC_REGISTRY."""
