"""The difficulty classifier: one fully convolutional pass gives one prediction for each tile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from cp_basicsr.engine.host import EngineUnavailableError, check_mode, set_for

# Laplacian, Sobel along both axes, the checkerboard's second difference, and second differences along both axes.
HIGH_PASS = (
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    ((1, -2, 1), (-2, 4, -2), (1, -2, 1)),
    ((0, 0, 0), (-1, 2, -1), (0, 0, 0)),
    ((0, -1, 0), (0, 2, 0), (0, -1, 0)),
)
SPREADS = (1, 2)  # pixels between the taps of a filter: fine and coarse structure
GAIN = 4.0  # brings statistics of images in [0, 1] to about -3 to 3
LEAST = 3e-3  # below 1/1000 of the range of an image differences are rounding


class TileStatistics(nn.Module):
    """Local contrast of each tile: of six high-pass filters at two spreads the logarithms of the mean magnitude, of its
    root mean square and of its maximum; and the mean brightness.

    Difficulty follows contrast over orders of magnitude. What a tile costs the picture is a sum over its pixels, so
    they are averaged before the logarithm is taken: the edge score, which does so, beat a classifier that took
    logarithms in cells of 4 x 4 pixels. M6C40 x2, six levels of 8, half the MACs, share of the oracle's gain on
    BSD100 / Set14 / Test2K crops: edge score 43 / 30 / 46 %, cells 35 / 27 / 44 %, this 44 / 31 / 48 %; a router that
    has run all levels, and lacks only the truth, 54 / 36 / 51 %.

    Attributes:
        width: channels of what it gives.
    """

    filters: Tensor
    width = 3 * len(SPREADS) * len(HIGH_PASS) + 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('filters', torch.tensor(HIGH_PASS, dtype=torch.float32)[:, None], persistent=False)

    def forward(self, x: Tensor, tile: int | None) -> Tensor:
        """``[B, C, H, W]`` in [0, 1], as ``[B, width, rows, columns]``; ``tile`` as the classifier's."""
        means, maxima = self._contrast(x, tile)
        magnitudes, squares = means[:, 1:].chunk(2, dim=1)
        kinds = (
            (magnitudes + LEAST).log() + 2,
            (squares + LEAST**2).log() / 2 + 1.5,
            (maxima + LEAST).log(),
        )
        by_spread = [kind.unflatten(1, (len(SPREADS), len(HIGH_PASS))) for kind in kinds]
        return torch.cat((means[:, :1] - GAIN / 2, torch.cat(by_spread, dim=2).flatten(1, 2)), dim=1)

    def _contrast(self, x: Tensor, tile: int | None) -> tuple[Tensor, Tensor]:
        """Means and maxima as of :func:`cp_basicsr.engine.tile_statistics.tile_statistics`."""
        try:
            check_mode(self)
            set_for(x)
            from cp_basicsr.engine.tile_statistics import tile_statistics

            return tile_statistics(x, tile, GAIN, HIGH_PASS, SPREADS)
        except EngineUnavailableError:
            return self._contrast_in_pytorch(x, tile)

    def _contrast_in_pytorch(self, x: Tensor, tile: int | None) -> tuple[Tensor, Tensor]:
        gray = GAIN * x.mean(dim=1, keepdim=True)
        means, squares, maxima = [_mean(gray, tile)], [], []
        for spread in SPREADS:
            smooth = F.avg_pool2d(F.pad(gray, (0, spread - 1) * 2, mode='replicate'), spread, stride=1)
            padded = F.pad(smooth, (spread,) * 4, mode='replicate')
            contrast = F.conv2d(padded, self.filters, dilation=spread).abs()
            means.append(_mean(contrast, tile))
            squares.append(_mean(contrast.square(), tile))
            maxima.append(_maximum(contrast, tile))
        return torch.cat(means + squares, dim=1), torch.cat(maxima, dim=1)


@ARCH_REGISTRY.register()
class DifficultyClassifier(nn.Module):
    """Predicts how hard each tile is from its contrast and that of the tiles around it.

    It takes 0.13 kMAC for each lq pixel and little for each tile: 0.2 % of a network of 94 kMAC for each lq pixel.

    Args:
        num_levels: classes, one for each level.
        in_channels: part of every classifier's options; this one averages the channels, however many.
        num_feat: half the width of its layers.
    """

    by_tile = True

    def __init__(self, num_levels: int, in_channels: int = 3, num_feat: int = 32) -> None:
        super().__init__()
        wide = 2 * num_feat
        self.statistics = TileStatistics()
        # The border is repeated: training patches are all border, tiles inside an image have none.
        around = nn.Conv2d(TileStatistics.width, wide, 3, padding=1, padding_mode='replicate')
        self.features = nn.Sequential(around, nn.LeakyReLU(0.1))
        self.head = nn.Sequential(nn.Conv2d(wide, wide, 1), nn.LeakyReLU(0.1), nn.Conv2d(wide, num_levels, 1))

    def forward(self, x: Tensor, tile: int | None = None) -> Tensor:
        """Logits of the levels.

        Args:
            x: ``[B, C, H, W]`` in [0, 1], any size.
            tile: side of a tile in pixels; None gives one prediction for each image.

        Returns:
            ``[B, L, ceil(H/tile), ceil(W/tile)]``, or ``[B, L, 1, 1]``.
        """
        return self.head(self.features(self.statistics(x, tile)))


def _mean(values: Tensor, tile: int | None) -> Tensor:
    """Mean of each tile; those at the border may be cut."""
    if tile is None:
        return values.mean(dim=(2, 3), keepdim=True)
    return F.avg_pool2d(values, tile, ceil_mode=True, count_include_pad=False)


def _maximum(values: Tensor, tile: int | None) -> Tensor:
    """Maximum of each tile; those at the border may be cut."""
    if tile is None:
        return values.amax(dim=(2, 3), keepdim=True)
    return F.max_pool2d(values, tile, ceil_mode=True)
