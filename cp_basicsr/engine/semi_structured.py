"""2:4 semi-structured storage of Linear weights, which tensor cores multiply at up to twice the rate.

The only N:M pattern that a GPU computes faster than dense. It holds every level that keeps at most two of four
neighbouring weights (1:4 too), in half precision, for widths that the kernels take, and only Linear layers: cuDNN has
no sparse convolutions. Small layers wait for memory, not for multiplications (and large ones were slower on an H100,
pytorch issue 153825), so both ways are timed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 16  # of both widths, as cuSPARSELt wants it in half precision (torch/sparse/semi_structured.py)
SAMPLE_TOKENS = 16384  # those of 128 x 128 pixels
WARM_UP, REPEATS = 3, 10


def fits(weight: Tensor) -> bool:
    """Whether a weight can be stored so: ``[out, in]``, half precision, at most two non-zeros in each four inputs."""
    if weight.dim() != 2 or weight.dtype not in (torch.float16, torch.bfloat16):
        return False
    if weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE:
        return False
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(dim=2) <= 2).all())


def quicker_weight(weight: Tensor, seconds: Callable[[Callable[[], Tensor]], float]) -> Tensor:
    """``weight`` itself, or its semi-structured copy where multiplying by that takes less time.

    Args:
        weight: masked, ``[out, in]``, one that :func:`fits`.
        seconds: times a call.

    Raises:
        RuntimeError: this device or build of PyTorch has no such kernels.
    """
    packed = torch.sparse.to_sparse_semi_structured(weight.contiguous())
    tokens = torch.ones((SAMPLE_TOKENS, weight.shape[1]), dtype=weight.dtype, device=weight.device)
    times = [seconds(lambda values=values: F.linear(tokens, values)) for values in (packed, weight)]
    return packed if times[0] < times[1] else weight


def cuda_seconds(call: Callable[[], Tensor]) -> float:
    """Mean time of a call on the current CUDA device."""
    for _ in range(WARM_UP):
        call()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(REPEATS):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / REPEATS / 1000
