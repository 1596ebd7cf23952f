"""Every architecture of BasicSR that becomes a ClassPruning network, as small as it can be built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
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


_EDSR = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
_VIDEO = {'num_feat': 8, 'num_block': 1}

EXAMPLES = {
    'EDSR': Example({'type': 'EDSR', **_EDSR, 'upscale': 2}, scale=2),
    'MSRResNet': Example({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 1, 'upscale': 3}, scale=3),
    'RCAN': Example({'type': 'RCAN', **_EDSR, 'num_group': 1, 'squeeze_factor': 2, 'upscale': 2}, scale=2),
    'RRDBNet': Example({'type': 'RRDBNet', **_EDSR, 'num_grow_ch': 32, 'scale': 4}, scale=4),
    'RIDNet': Example({'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 64, 'out_channels': 3, 'num_block': 1}),
    'SRVGGNetCompact': Example({'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 3}, scale=3),
    'ECBSR': Example(
        {
            'type': 'ECBSR', 'num_in_ch': 1, 'num_out_ch': 1, 'num_block': 1, 'num_channel': 8, 'with_idt': False,
            'act_type': 'prelu', 'scale': 2,
        },
        (1, 8, 12), 2,
    ),
    'SwinIR': Example(
        {
            'type': 'SwinIR', 'in_chans': 3, 'img_size': 16, 'window_size': 8, 'embed_dim': 8, 'depths': [2],
            'num_heads': [2], 'mlp_ratio': 2, 'upscale': 2, 'upsampler': 'pixelshuffle', 'img_range': 1.0,
        },
        (3, 16, 24), 2,
    ),
    'HiFaceGAN': Example({'type': 'HiFaceGAN', 'num_feat': 4, 'crop_size': 64}, (3, 64, 64)),
    'DUF': Example({'type': 'DUF', 'scale': 2, 'num_layer': 16}, (7, 3, 8, 8), 2),
    'TOFlow': Example({'type': 'TOFlow'}, (7, 3, 16, 32)),
    'BasicVSR': Example({'type': 'BasicVSR', **_VIDEO}, (2, 3, 64, 64), 4),
    'BasicVSRPlusPlus': Example(
        {'type': 'BasicVSRPlusPlus', 'mid_channels': 8, 'num_blocks': 1}, (2, 3, 64, 64), 4, True
    ),
    'EDVR': Example(
        {'type': 'EDVR', 'num_feat': 8, 'num_frame': 5, 'num_extract_block': 1, 'num_reconstruct_block': 1},
        (5, 3, 8, 8), 4, True,
    ),
    'IconVSR': Example({'type': 'IconVSR', 'keyframe_stride': 4, **_VIDEO}, (5, 3, 64, 64), 4, True),
}  # fmt: skip
