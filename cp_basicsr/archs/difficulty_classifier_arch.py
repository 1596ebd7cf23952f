"""The difficulty classifier: one fully convolutional pass gives one prediction for each tile."""

from __future__ import annotations

import math

import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

STEM = 4  # pixels folded into channels before the first convolution
STRIDE = 8  # lq pixels for each position of the last feature map
# Brightness says little about difficulty and drowns what does: on patches that are textured or flat, with images in
# [0, 1] as they are, 200 iterations taught nothing (cross-entropy 1.04); centred and scaled, 40 reach the floor (0.6).
CENTRE, GAIN = 0.5, 4.0


@ARCH_REGISTRY.register()
class DifficultyClassifier(nn.Module):
    """Predicts how hard each tile is, with the context around it.

    Pixels are folded 4 x 4 into channels, so a 3x3 convolution sees 12 x 12 pixels for 1/16 of the work; with
    ``num_feat=32`` the whole network takes 2.3 kMAC for each lq pixel (colour), 0.1 % of EDSR-baseline x4.

    Args:
        num_levels: classes, one for each level.
        in_channels: 1 for gray, 3 for colour.
        num_feat: width of the first layer; the others have twice as many.
    """

    by_tile = True

    def __init__(self, num_levels: int, in_channels: int = 3, num_feat: int = 32) -> None:
        super().__init__()
        wide = 2 * num_feat
        self.features = nn.Sequential(
            nn.PixelUnshuffle(STEM),
            _conv(in_channels * STEM**2, num_feat),
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
