"""The precision that a network computes in at test time: asked for by name, never taken silently."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from cp_basicsr.options import OptionError

DEFAULT_PRECISION = 'fp32'
# fp32 stands for the network's own type.
PRECISIONS: dict[str, torch.dtype | None] = {DEFAULT_PRECISION: None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def allowed_precisions(device: torch.device) -> tuple[str, ...]:
    """What a network can compute in on ``device``, and gain by: nothing that the device only emulates."""
    if device.type == 'cpu':
        return 'fp32', 'bf16'
    if device.type == 'cuda':
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ('fp32', 'bf16', 'fp16') if native else ('fp32', 'fp16')
    return ('fp32',)


def check_precision(precision: str, device: torch.device, where: str = 'val.precision') -> None:
    """Refuse a precision that ``device`` does not compute in.

    Raises:
        OptionError: naming ``where`` it stands and what is allowed.
    """
    allowed = allowed_precisions(device)
    if precision not in allowed:
        raise OptionError(
            f'{where} is {precision!r}, but the network runs on {device.type}; allowed there: {", ".join(allowed)}.'
        )


def computing_in(precision: str, device: torch.device) -> AbstractContextManager:
    """Layers within this block compute in ``precision``; what needs more (normalisation, softmax) keeps fp32."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
