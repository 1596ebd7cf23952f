"""Every architecture of BasicSR that becomes a ClassPruning network, as small as it can be built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import cp_basicsr.archs  # noqa: F401
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet

SPARSITY = {'m': 4, 'levels': [1, 2, 4]}
CLASSIFIER = {'type': 'DifficultyClassifier', 'num_feat': 4}


@dataclass(frozen=True)
class Case:
    """Options of a base network and one input it takes.

    Attributes:
        base: options, type included.
        shape: input without batch axis.
        scale: output pixels for each input pixel.
        needs_deform: it has deformable convolutions.
    """

    base: dict[str, Any]
    shape: tuple[int, ...] = (3, 8, 12)
    scale: int = 1
    needs_deform: bool = False

    def net(self, **sparsity: Any) -> ClassPruningNet:
        """A new network, seeded."""
        torch.manual_seed(0)
        return ClassPruningNet(dict(self.base), SPARSITY | sparsity, dict(CLASSIFIER)).eval()

    def input(self, batch: int = 1) -> Tensor:
        """A batch in [0, 1], seeded."""
        return torch.rand(batch, *self.shape, generator=torch.Generator().manual_seed(1))


def _swinir(scale: int, upsampler: str, channels: int = 3, size: tuple[int, int] = (8, 12), **options: Any) -> Case:
    base = {
        'type': 'SwinIR', 'in_chans': channels, 'img_size': 8, 'window_size': 4, 'embed_dim': 8, 'depths': [2],
        'num_heads': [2], 'mlp_ratio': 2, 'upscale': scale, 'upsampler': upsampler, 'img_range': 1.0, **options,
    }  # fmt: skip
    return Case(base, (channels, *size), scale)


_EDSR = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
_RCAN = {'type': 'RCAN', **_EDSR, 'num_group': 1, 'squeeze_factor': 2}
_RRDB = {'type': 'RRDBNet', **_EDSR, 'num_grow_ch': 4}
_ECBSR = {'type': 'ECBSR', 'num_in_ch': 1, 'num_out_ch': 1, 'num_block': 1, 'num_channel': 8, 'scale': 2}
_VIDEO = {'num_feat': 8, 'num_block': 1}

# Single images, routed by tile.
IMAGE_CASES = {
    'EDSR': Case({'type': 'EDSR', **_EDSR, 'upscale': 2}, scale=2),
    'EDSR x4': Case({'type': 'EDSR', **_EDSR, 'upscale': 4, 'res_scale': 0.1}, scale=4),
    'MSRResNet': Case({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 1, 'upscale': 3}, scale=3),
    'RCAN': Case({**_RCAN, 'upscale': 2}, scale=2),
    'RRDBNet x1': Case({**_RRDB, 'scale': 1}, scale=1),
    'RRDBNet x2': Case({**_RRDB, 'scale': 2}, scale=2),
    'RRDBNet x4': Case({**_RRDB, 'scale': 4}, scale=4),
    'RIDNet': Case({'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 64, 'out_channels': 3, 'num_block': 1}),
    'SRVGGNetCompact': Case({'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 3}, scale=3),
    'SRVGGNetCompact gray x1': Case(
        {'type': 'SRVGGNetCompact', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 8, 'num_conv': 2, 'upscale': 1},
        (1, 8, 12),
    ),
    'ECBSR': Case({**_ECBSR, 'with_idt': False, 'act_type': 'prelu'}, (1, 8, 12), 2),
    'ECBSR with identity': Case({**_ECBSR, 'with_idt': True, 'act_type': 'relu'}, (1, 8, 12), 2),
    'SwinIR pixelshuffle': _swinir(2, 'pixelshuffle'),
    'SwinIR pixelshuffledirect': _swinir(3, 'pixelshuffledirect'),
    'SwinIR nearest+conv': _swinir(4, 'nearest+conv'),
    'SwinIR 3conv': _swinir(2, 'pixelshuffle', resi_connection='3conv'),
    'SwinIR colour denoising': _swinir(1, ''),
    'SwinIR gray denoising': _swinir(1, '', channels=1),
    'SwinIR JPEG': _swinir(1, '', channels=1, size=(14, 7), window_size=7, img_size=14, img_range=255.0),
}  # fmt: skip

# Routed as a whole: videos, and images whose features do not lie on the image.
WHOLE_CASES = {
    'DUF': Case({'type': 'DUF', 'scale': 2, 'num_layer': 16}, (7, 3, 8, 8), 2),
    'TOFlow': Case({'type': 'TOFlow'}, (7, 3, 16, 32), 1),
    'BasicVSR': Case({'type': 'BasicVSR', **_VIDEO}, (2, 3, 64, 64), 4),
    'BasicVSRPlusPlus': Case({'type': 'BasicVSRPlusPlus', 'mid_channels': 8, 'num_blocks': 1}, (2, 3, 64, 64), 4, True),
    'EDVR': Case(
        {'type': 'EDVR', 'num_feat': 8, 'num_frame': 5, 'num_extract_block': 1, 'num_reconstruct_block': 1},
        (5, 3, 8, 8), 4, True,
    ),
    'IconVSR': Case({'type': 'IconVSR', 'keyframe_stride': 4, **_VIDEO}, (5, 3, 64, 64), 4, True),
}  # fmt: skip


class Registered(nn.Module):
    """An architecture of a user, with a name for its input channels that no class of BasicSR has."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)
