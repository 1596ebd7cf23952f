"""The difficulty classifier: one fully convolutional pass gives one prediction for each tile."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

STEM = 4  # pixels whose energy is averaged before the first convolution
STRIDE = 8  # lq pixels for each position of the last feature map
# Brightness says little about difficulty and drowns what does: on patches that are textured or flat, with images in
# [0, 1] as they are, 200 iterations taught nothing (cross-entropy 1.04); centred and scaled, 40 reach the floor (0.6).
CENTRE, GAIN = 0.5, 4.0
# Laplacian, Sobel along both axes, the checkerboard's second difference, and second differences along both axes.
HIGH_PASS = (
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    ((1, -2, 1), (-2, 4, -2), (1, -2, 1)),
    ((0, 0, 0), (-1, 2, -1), (0, 0, 0)),
    ((0, -1, 0), (0, 2, 0), (0, -1, 0)),
)
LEAST_ENERGY = 0.01  # below 1/400 of the range of an image differences are rounding


class LogEnergy(nn.Module):
    """Local contrast: logarithm of the mean magnitude, in cells of STEM x STEM, of six fixed high-pass filters.

    Difficulty follows local contrast over orders of magnitude, and a small network has no cheap way to form it.
    M6C40 x2, six levels of 8, half the MACs: with pixels folded into channels instead, 2,000 iterations gave 16 % of
    the oracle's gain over static pruning on BSD100 and 23 % on Set14; this gave 22 and 23 % after 300.
    """

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('filters', torch.tensor(HIGH_PASS, dtype=torch.float32)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, sides multiples of STEM, as ``[B, 6, H / STEM, W / STEM]``; channels are averaged."""
        gray = F.pad(x.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode='replicate')
        energy = F.avg_pool2d(F.conv2d(gray, self.filters).abs(), STEM)
        return (energy + LEAST_ENERGY).log() + 3  # about centred


@ARCH_REGISTRY.register()
class DifficultyClassifier(nn.Module):
    """Predicts how hard each tile is, with the context around it.

    It sees the local contrast in cells of 4 x 4 pixels, so a 3x3 convolution sees 12 x 12 pixels for 1/16 of the work;
    with ``num_feat=32`` the whole network takes 1.6 kMAC for each lq pixel, 0.1 % of EDSR-baseline x4.

    Args:
        num_levels: classes, one for each level.
        in_channels: part of every classifier's options; this one averages the channels, however many.
        num_feat: width of the first layer; the others have twice as many.
    """

    by_tile = True

    def __init__(self, num_levels: int, in_channels: int = 3, num_feat: int = 32) -> None:
        super().__init__()
        wide = 2 * num_feat
        self.features = nn.Sequential(
            LogEnergy(),
            _conv(len(HIGH_PASS), num_feat),
            nn.LeakyReLU(0.1),
            _conv(num_feat, wide, stride=STRIDE // STEM),
            nn.LeakyReLU(0.1),
            _conv(wide, wide),
            nn.LeakyReLU(0.1),
            _conv(wide, wide, dilation=2),
            nn.LeakyReLU(0.1),
        )
        self.head = nn.Sequential(nn.Conv2d(wide, wide, 1), nn.LeakyReLU(0.1), nn.Conv2d(wide, num_levels, 1))

    def forward(self, x: Tensor, tile: int | None = None) -> Tensor:
        """Logits of the levels.

        Args:
            x: ``[B, C, H, W]`` in [0, 1], any size.
            tile: side of a tile in pixels; None gives one prediction for each image.

        Returns:
            ``[B, L, ceil(H/tile), ceil(W/tile)]``, or ``[B, L, 1, 1]``.
        """
        height, width = x.shape[-2:]
        centred = (x - CENTRE) * GAIN
        features = self.features(F.pad(centred, (0, -width % STRIDE, 0, -height % STRIDE), mode='replicate'))
        return self.head(_pool_tiles(features, tile, height, width))


def _conv(in_width: int, out_width: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that repeats the border: training patches are all border, tiles inside an image have none."""
    return nn.Conv2d(
        in_width, out_width, 3, stride=stride, padding=dilation, dilation=dilation, padding_mode='replicate'
    )


def _pool_tiles(features: Tensor, tile: int | None, height: int, width: int) -> Tensor:
    """Mean of the features within each tile; a tile that is no multiple of STRIDE shares cells with its neighbours."""
    if tile is None:
        return features.mean(dim=(2, 3), keepdim=True)
    cell = math.gcd(tile, STRIDE)
    if cell < STRIDE:
        features = F.interpolate(features, scale_factor=STRIDE // cell, mode='nearest')
    features = features[..., : math.ceil(height / cell), : math.ceil(width / cell)]
    return F.avg_pool2d(features, tile // cell, ceil_mode=True, count_include_pad=False)
