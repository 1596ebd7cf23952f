"""Every architecture of BasicSR that becomes a ClassPruning network, as small as it can be built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import cp_basicsr.archs  # noqa: F401
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.examples import EXAMPLES, Example

SPARSITY = {'m': 4, 'levels': [1, 2, 4]}
CLASSIFIER = {'type': 'DifficultyClassifier', 'num_feat': 4}


class Case(Example):
    """An example that is built and fed in tests."""

    def net(self, **sparsity: Any) -> ClassPruningNet:
        """A new network, seeded."""
        torch.manual_seed(0)
        return ClassPruningNet(dict(self.base), SPARSITY | sparsity, dict(CLASSIFIER)).eval()

    def input(self, batch: int = 1) -> Tensor:
        """A batch in [0, 1], seeded."""
        return torch.rand(batch, *self.shape, generator=torch.Generator().manual_seed(1))


def _case(name: str, ratio: int | None = None, shape: tuple[int, ...] | None = None, **options: Any) -> Case:
    """An architecture's example with other options and therefore another ratio of output to input pixels."""
    example = EXAMPLES[name]
    return Case(example.base | options, shape or example.shape, ratio or example.scale, example.needs_deform)


def _swinir(scale: int, upsampler: str, channels: int = 3, size: tuple[int, int] = (8, 12), **options: Any) -> Case:
    options = {'window_size': 4, 'img_size': 8, **options}
    options |= {'upscale': scale, 'upsampler': upsampler, 'in_chans': channels}
    return _case('SwinIR', scale, (channels, *size), **options)


# Single images, routed by tile.
IMAGE_CASES = {
    'EDSR': _case('EDSR'),
    'EDSR x4': _case('EDSR', 4, upscale=4, res_scale=0.1),
    'MSRResNet': _case('MSRResNet'),
    'RCAN': _case('RCAN'),
    'RRDBNet x1': _case('RRDBNet', 1, num_grow_ch=4, scale=1),
    'RRDBNet x2': _case('RRDBNet', 2, num_grow_ch=4, scale=2),
    'RRDBNet x4': _case('RRDBNet', 4, num_grow_ch=4, scale=4),
    'RIDNet': _case('RIDNet'),
    'SRVGGNetCompact': _case('SRVGGNetCompact'),
    'SRVGGNetCompact gray x1': _case('SRVGGNetCompact', 1, (1, 8, 12), num_in_ch=1, num_out_ch=1, upscale=1),
    'ECBSR': _case('ECBSR'),
    'ECBSR with identity': _case('ECBSR', with_idt=True, act_type='relu'),
    'SwinIR pixelshuffle': _swinir(2, 'pixelshuffle'),
    'SwinIR pixelshuffledirect': _swinir(3, 'pixelshuffledirect'),
    'SwinIR nearest+conv': _swinir(4, 'nearest+conv'),
    'SwinIR 3conv': _swinir(2, 'pixelshuffle', resi_connection='3conv'),
    'SwinIR colour denoising': _swinir(1, ''),
    'SwinIR gray denoising': _swinir(1, '', channels=1),
    'SwinIR JPEG': _swinir(1, '', channels=1, size=(14, 7), window_size=7, img_size=14, img_range=255.0),
}  # fmt: skip

# lq pixels to each side that an output pixel sees, counted layer by layer (windows: up to their far edge), at most.
REACH = {
    'EDSR': 8,
    'MSRResNet': 8,
    'RRDBNet x1': 88,
    'RRDBNet x2': 46,
    'RRDBNet x4': 24,
    'SRVGGNetCompact': 4,
    'ECBSR with identity': 4,
    'SwinIR pixelshuffle': 16,
    'SwinIR 3conv': 20,
    'SwinIR nearest+conv': 16,
    'SwinIR colour denoising': 16,
}

# Routed as a whole: videos, and images whose features do not lie on the image.
WHOLE_CASES = {name: _case(name) for name in ('DUF', 'TOFlow', 'BasicVSR', 'BasicVSRPlusPlus', 'EDVR', 'IconVSR')}


class Registered(nn.Module):
    """An architecture of a user, with a name for its input channels that no class of BasicSR has."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)
