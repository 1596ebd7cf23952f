"""SwinIR on feature maps: what its blocks do with lists of tokens, done where the pixels lie.

BasicSR's SwinIR copies its features between maps, tokens, shifted windows and heads a dozen times in each block. A
Linear does not mind the order of its tokens, so here everything stays a map, and only attention knows of windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.archs.swinir_arch import RSTB, SwinIR, SwinTransformerBlock
from torch import Tensor, nn

from cp_basicsr.sparsity import NMLinear, active_route

MASKED = -100.0  # SwinIR's score between pixels that only the cyclic shift makes neighbours


def on_maps(base: nn.Module) -> nn.Module | None:
    """A network that computes what a SwinIR computes, for the engine to trace; None: it is another network, or a SwinIR
    whose options the compiled attention does not cover."""
    if type(base) is not SwinIR or base.ape:
        return None
    if not all(_covered(block) for block in base.modules() if isinstance(block, SwinTransformerBlock)):
        return None
    return _MapSwinIR(base).eval()


def _covered(block: SwinTransformerBlock) -> bool:
    from cp_basicsr.engine.window_attention import HALF, SIDE

    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    return (
        block.window_size == SIDE
        and block.shift_size in (0, HALF)
        and all(isinstance(layer, NMLinear) for layer in layers)
        and all(type(norm) is nn.LayerNorm and norm.elementwise_affine for norm in (block.norm1, block.norm2))
        and isinstance(block.mlp.act, nn.GELU)
        and block.mlp.act.approximate == 'none'
    )


class _MapSwinIR(nn.Module):
    def __init__(self, base: SwinIR) -> None:
        super().__init__()
        self.base = base
        self.register_buffer('mean', base.mean, persistent=False)
        self.groups = nn.ModuleList(_Group(group) for group in base.layers)
        self.first_norm = nn.Identity() if base.patch_embed.norm is None else _norm(base.patch_embed.norm)
        self.norm = _norm(base.norm)

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        x = (x - self.mean) * base.img_range
        first = base.conv_first(x)
        y = self.first_norm(first)
        for group in self.groups:
            y = group(y)
        y = base.conv_after_body(self.norm(y)) + first
        if base.upsampler == 'pixelshuffle':
            y = base.conv_last(base.upsample(base.conv_before_upsample(y)))
        elif base.upsampler == 'pixelshuffledirect':
            y = base.upsample(y)
        elif base.upsampler == 'nearest+conv':
            y = base.conv_before_upsample(y)
            for conv in (base.conv_up1, base.conv_up2):
                y = base.lrelu(conv(F.interpolate(y, scale_factor=2, mode='nearest')))
            y = base.conv_last(base.lrelu(base.conv_hr(y)))
        else:
            y = base.conv_last(y) + x
        return y / base.img_range + self.mean


class _Group(nn.Module):
    def __init__(self, group: RSTB) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_block(block) for block in group.residual_group.blocks))
        self.conv = group.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.blocks(x)) + x


def _norm(norm: nn.LayerNorm) -> nn.Module:
    """A LayerNorm over the channels of a map."""
    from cp_basicsr.engine.fusion import Step
    from cp_basicsr.engine.layer_norm import layer_norm

    class MapNorm(Step):
        def forward(self, x: Tensor) -> Tensor:
            return layer_norm(x, norm.weight, norm.bias, norm.eps)

    return MapNorm()


def _block(block: SwinTransformerBlock) -> nn.Module:
    """A transformer block on a map."""
    from cp_basicsr.engine.compiled_layer import Epilogue
    from cp_basicsr.engine.fusion import Step
    from cp_basicsr.engine.job import Activation
    from cp_basicsr.engine.window_attention import window_attention

    attention, mlp = block.attn, block.mlp
    norm1, norm2 = _norm(block.norm1), _norm(block.norm2)
    bias = _bias(block)

    class MapBlock(Step):
        def forward(self, x: Tensor) -> Tensor:
            linear = active_route().run_pixels
            qkv = linear(attention.qkv, norm1(x))
            heads = window_attention(qkv, attention.num_heads, block.shift_size, bias, attention.scale)
            x = linear(attention.proj, heads, Epilogue(residual=x))
            hidden = linear(mlp.fc1, norm2(x), Epilogue(activation=Activation.GELU))
            return linear(mlp.fc2, hidden, Epilogue(residual=x))

    return MapBlock()


@torch.no_grad()
def _bias(block: SwinTransformerBlock) -> Tensor:
    """What :func:`~cp_basicsr.engine.window_attention.window_attention` adds to the scores of each kind of window."""
    side, attention = block.window_size, block.attn
    tokens = side * side
    table = attention.relative_position_bias_table[attention.relative_position_index.flatten()]
    bias = table.view(tokens, tokens, attention.num_heads).permute(2, 1, 0)
    beyond = torch.arange(side) >= side - block.shift_size
    column, row = beyond.repeat(side), beyond.repeat_interleave(side)
    kinds = (torch.zeros(tokens), column * 1.0, row * 2.0, column * 1.0 + row * 2.0)
    masks = [(kind[:, None] != kind[None]) * MASKED for kind in kinds]
    return torch.stack([bias + mask for mask in masks]).contiguous()
