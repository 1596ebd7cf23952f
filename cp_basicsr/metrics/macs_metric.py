"""MACs as a validation metric beside PSNR and SSIM."""

from __future__ import annotations

from typing import Any

from basicsr.utils.registry import METRIC_REGISTRY

from cp_basicsr.options import OptionError


@METRIC_REGISTRY.register()
def calculate_macs(macs_share: float | None = None, **kwargs: Any) -> float:
    """MACs spent on an image as a fraction of the dense network's on the same (padded) image, classifier included.

    Args:
        macs_share: handed over by ClassPruningModel's validation.
        kwargs: the images, which this metric does not look at.

    Raises:
        OptionError: the model does not count MACs.
    """
    if macs_share is None:
        raise OptionError(
            'val.metrics: calculate_macs needs `model_type: ClassPruningModel`; other models do not count.'
        )
    return macs_share
