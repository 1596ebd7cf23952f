"""Whether a network's values are still those that something was made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ParameterState = tuple[tuple[tuple[int, int], ...], bytes]


def parameter_state(net: nn.Module) -> ParameterState:
    """Differs after a parameter or buffer was replaced or changed.

    Changes behind autograd's back, by fused optimizers (torch 2.5 to 2.13 do not count their steps) or through
    ``.data``, are seen where they change the norm of a tensor: a permutation through ``.data`` is not.
    """
    values = [*net.parameters(), *net.buffers()]
    floats = [value.detach() for value in values if value.is_floating_point()]
    norms = torch.stack(torch._foreach_norm(floats, dtype=torch.float32)) if floats else torch.empty(0)
    # As bytes: NaN equals itself.
    return tuple((value.data_ptr(), _version(value)) for value in values), norms.cpu().numpy().tobytes()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
