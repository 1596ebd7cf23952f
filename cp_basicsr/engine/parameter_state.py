"""Whether a network's values are still those that something was made from."""

from __future__ import annotations

from torch import Tensor, nn

ParameterState = tuple[tuple[int, int], ...]


def parameter_state(net: nn.Module) -> ParameterState:
    """Differs after a parameter or buffer was replaced or changed, unless behind autograd's back (``.data``)."""
    return tuple((value.data_ptr(), _version(value)) for value in (*net.parameters(), *net.buffers()))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
