"""The networks that are timed: random weights, built through BasicSR's registry as a user's option file would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from cp_basicsr.options import OptionError, nearest

SEED = 0
M, LEVELS = 4, (1, 2, 4)
LQ_256 = (256, 256)
LQ_720P = (180, 320)  # x4 gives 1280 x 720 pixels


@ARCH_REGISTRY.register()
class BenchmarkLayer(nn.Module):
    """One 3x3 convolution of ``num_in_ch`` channels into as many, the layer that these networks consist of."""

    def __init__(self, num_in_ch: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_in_ch, num_in_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@dataclass(frozen=True)
class Network:
    """What is timed under one name.

    Attributes:
        key: name on the command line.
        title: name in tables.
        base: options of the base network, ``type`` included.
        sizes: heights and widths of the inputs unless others are asked for, pixels.
        budgets: shares of the dense MACs that the routed mixes spend, classifier excluded.
        channels: of the input.
        scale: output pixels for each input pixel along one side.
        has_classifier: whether a classifier chooses levels for it. It makes no sense in front of a single layer, whose
            mixes are timed with the level map given.
    """

    key: str
    title: str
    base: Mapping[str, Any]
    sizes: tuple[tuple[int, int], ...] = (LQ_256, LQ_720P)
    budgets: tuple[float, ...] = (0.5, 0.35)
    channels: int = 3
    scale: int = 4
    has_classifier: bool = True

    def build(self, levels: Sequence[int] = LEVELS, m: int = M) -> Any:
        """A ClassPruningNet in eval mode, the same weights at every call."""
        torch.manual_seed(SEED)
        sparsity = {'m': m, 'levels': list(levels)}
        return build_network({'type': 'ClassPruningNet', 'base': dict(self.base), 'sparsity': sparsity}).eval()

    def sample(self, size: tuple[int, int], multiple: int = 1) -> Tensor:
        """One input, float32 ``[1, C, H, W]`` in [0, 1), the same at every call.

        Args:
            size: height and width, pixels.
            multiple: to whose multiples they are rounded up, where the network needs it (SwinIR's windows).
        """
        height, width = (-(-side // multiple) * multiple for side in size)
        return torch.rand((1, self.channels, height, width), generator=torch.Generator().manual_seed(SEED))


_SWINIR_LIGHT = {
    'type': 'SwinIR',
    'upscale': 4,
    'in_chans': 3,
    'img_size': 64,
    'window_size': 8,
    'img_range': 1.0,
    'depths': [6, 6, 6, 6],
    'embed_dim': 60,
    'num_heads': [6, 6, 6, 6],
    'mlp_ratio': 2,
    'upsampler': 'pixelshuffledirect',
    'resi_connection': '1conv',
}
_COLOUR = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64}

NETWORKS = {
    network.key: network
    for network in (
        Network(
            'layer',
            '64->64 3x3 layer',
            {'type': 'BenchmarkLayer', 'num_in_ch': 64},
            sizes=((128, 128),),
            channels=64,
            scale=1,
            has_classifier=False,
        ),
        Network('srvgg', 'SRVGGNetCompact x4', {'type': 'SRVGGNetCompact', **_COLOUR, 'num_conv': 16, 'upscale': 4}),
        Network('edsr', 'EDSR-baseline x4', {'type': 'EDSR', **_COLOUR, 'num_block': 16, 'upscale': 4}),
        Network('msrresnet', 'MSRResNet x4', {'type': 'MSRResNet', **_COLOUR, 'num_block': 16, 'upscale': 4}),
        Network(
            'rrdb',
            'RRDBNet x4, 6 blocks',
            {'type': 'RRDBNet', **_COLOUR, 'num_block': 6, 'num_grow_ch': 32, 'scale': 4},
        ),
        # Attention stays dense: its sparsest level spends more than 0.35 of the MACs.
        Network('swinir', 'SwinIR-light x4', _SWINIR_LIGHT, budgets=(0.6, 0.5)),
    )
}


def chosen(keys: Sequence[str]) -> list[Network]:
    """The networks of these names, in the order given.

    Raises:
        OptionError: there is no such network.
    """
    for key in keys:
        if key not in NETWORKS:
            raise OptionError(f'--networks holds {key!r}.{nearest(key, NETWORKS)} Networks are: {", ".join(NETWORKS)}.')
    return [NETWORKS[key] for key in keys]
