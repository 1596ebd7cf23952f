"""Pictures as users have them, arrays or tensors, and as networks take them: float32 ``[B, C, H, W]`` in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Picture = np.ndarray | Tensor

LARGEST = {torch.uint8: 255, torch.uint16: 65535}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Noise may carry floats out of [0, 1]; values as far out as these come from another range, such as 0 to 255.
FARTHEST = (-3.0, 4.0)
ROWS_AT_ONCE = 1024  # pictures may fill half of the memory; they are not copied as a whole
LUMA = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601, as PIL and OpenCV turn colour to gray


class PictureError(ValueError):
    """An array or tensor is no picture that can be restored; the message says what is allowed."""


@dataclass(frozen=True)
class Planes:
    """A picture, or a batch of equal size.

    Attributes:
        colour: ``[B, C, H, W]``, C 1 (gray) or 3 (red, green, blue).
        alpha: ``[B, 1, H, W]`` or None.
    """

    colour: Tensor
    alpha: Tensor | None


def to_planes(picture: Picture) -> Planes:
    """Take a picture apart.

    Args:
        picture: an array ``[H, W]`` or ``[H, W, C]`` with 1, 2 (gray and alpha), 3 or 4 channels (RGB and alpha), or a
            tensor ``[C, H, W]`` or ``[B, C, H, W]``; uint8, uint16, or float in [0, 1].

    Raises:
        PictureError: it is something else.
    """
    pixels = _batch(picture)
    if pixels.shape[1] not in (1, 2, 3, 4) or not pixels.numel():
        raise PictureError(
            f'A picture of shape {tuple(picture.shape)} cannot be restored; allowed: arrays [H, W] or [H, W, C], '
            'tensors [C, H, W] or [B, C, H, W], with C 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha).'
        )
    if pixels.dtype in LARGEST:
        pixels = pixels.float().div_(LARGEST[pixels.dtype])
    elif pixels.dtype in FLOATS:
        low, high = (float(value) for value in pixels.aminmax())
        if not FARTHEST[0] <= low <= high <= FARTHEST[1]:
            raise PictureError(f'A float picture holds values from {low:g} to {high:g}; bring it to [0, 1].')
        pixels = pixels.float()
    else:
        raise PictureError(f'A picture of {pixels.dtype} cannot be restored; allowed: uint8, uint16, float in [0, 1].')
    channels = pixels.shape[1]
    if channels in (1, 3):
        return Planes(pixels, None)
    return Planes(pixels[:, : channels - 1], pixels[:, channels - 1 :])


def from_planes(planes: Planes, like: Picture) -> Picture:
    """Put planes together to a picture of the kind, type and axes of ``like``; values are cut off at [0, 1]."""
    pixels = planes.colour if planes.alpha is None else torch.cat([planes.colour, planes.alpha], dim=1)
    dtype = like.dtype if isinstance(like, Tensor) else torch.from_numpy(np.empty(0, _native(like))).dtype
    pixels = torch.cat([_as_type(rows, dtype) for rows in pixels.split(ROWS_AT_ONCE, dim=-2)], dim=-2)
    if isinstance(like, Tensor):
        return (pixels if like.dim() == 4 else pixels[0]).to(like.device)
    return pixels[0, 0].cpu().numpy() if like.ndim == 2 else pixels[0].permute(1, 2, 0).contiguous().cpu().numpy()


def _as_type(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    pixels = pixels.clamp(0, 1)
    if dtype in LARGEST:
        pixels.mul_(LARGEST[dtype]).round_()
    return pixels.to(dtype)


def luma(pixels: Tensor) -> Tensor:
    """Colour ``[B, 3, H, W]`` as gray ``[B, 1, H, W]``; gray as it is."""
    if pixels.shape[1] == 1:
        return pixels
    return (pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def _tensor(picture: Picture) -> Tensor:
    if isinstance(picture, Tensor):
        return picture
    if not isinstance(picture, np.ndarray):
        raise PictureError(f'{type(picture).__name__} is no picture; allowed: NumPy arrays and PyTorch tensors.')
    try:
        # torch takes no negative strides (a picture turned or mirrored), no foreign byte order, and nothing read-only.
        return torch.from_numpy(np.require(picture, _native(picture), ['C', 'W']))
    except TypeError:
        raise PictureError(
            f'A picture of {picture.dtype} cannot be restored; allowed: uint8, uint16, float in [0, 1].'
        ) from None


def _native(picture: np.ndarray) -> np.dtype:
    return picture.dtype.newbyteorder('=')


def _batch(picture: Picture) -> Tensor:
    """``[B, C, H, W]`` of any type; a picture of other axes becomes one without channels."""
    tensor = _tensor(picture)
    if isinstance(picture, Tensor):
        return {3: tensor[None], 4: tensor}.get(tensor.dim(), tensor.new_empty(0, 0, 0, 0))
    if tensor.dim() == 2:
        return tensor[None, None]
    return tensor.permute(2, 0, 1)[None] if tensor.dim() == 3 else tensor.new_empty(0, 0, 0, 0)
