"""Preparing image data, the noise dataset, and clear errors for bad data; importing this package imports nothing."""
