"""PSNR and SSIM by BasicSR's functions, the same for every row whatever the option file's metrics."""

from __future__ import annotations

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim


def quality(restored: np.ndarray, gt: np.ndarray, border: int) -> dict[str, float]:
    """Quality of a restored image.

    Args:
        restored, gt: ``[H, W, 3]`` (BGR) or ``[H, W]`` in 0 to 255; ``gt`` is uint8.
        border: pixels left out along each side.

    Returns:
        ``psnr_y``, ``psnr_rgb`` (dB) and ``ssim`` (of Y); of gray images ``psnr_gray`` and ``ssim``.
    """
    if gt.ndim == 2:
        return {
            'psnr_gray': float(calculate_psnr(restored, gt, border)),
            'ssim': float(calculate_ssim(restored, gt, border)),
        }
    return {
        'psnr_y': float(calculate_psnr(restored, gt, border, test_y_channel=True)),
        'psnr_rgb': float(calculate_psnr(restored, gt, border)),
        'ssim': float(calculate_ssim(restored, gt, border, test_y_channel=True)),
    }


def headline_of(names: list[str], scale: int) -> str:
    """The PSNR by which rows are compared: of Y in super-resolution, of all channels else, as papers do."""
    if 'psnr_gray' in names:
        return 'psnr_gray'
    return 'psnr_y' if scale > 1 else 'psnr_rgb'
