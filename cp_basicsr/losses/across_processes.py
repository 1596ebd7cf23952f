"""Batch statistics over all processes of a distributed run, so that N processes train as one with the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_processes(local: Tensor) -> Tensor:
    """Mean of ``local`` over the processes, with the gradient of the local value.

    DistributedDataParallel averages gradients, so a function of this mean gets the gradient of the whole batch.
    """
    if not _is_distributed():
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return local + (total / dist.get_world_size() - local.detach())


def gather_over_processes(local: Tensor) -> Tensor:
    """``local`` of all processes, concatenated in the order of their ranks (equal shapes; no gradient)."""
    if not _is_distributed():
        return local
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)
