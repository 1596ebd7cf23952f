"""What is special about single BasicSR architectures: layers, placements, input sizes, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from basicsr.archs.arch_util import pixel_unshuffle
from basicsr.archs.basicvsrpp_arch import BasicVSRPlusPlus
from basicsr.archs.ecbsr_arch import ECB
from basicsr.archs.edvr_arch import EDVR
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.swinir_arch import SwinTransformerBlock
from basicsr.archs.tof_arch import TOFlow
from basicsr.ops.dcn import ModulatedDeformConv
from torch import Tensor, nn

from cp_basicsr.options import OptionError
from cp_basicsr.sparsity import Convolution, PrunableLayer, WindowPlacement

# Architectures that cannot be image-to-image supernets, and why.
REFUSED = {
    'StyleGAN2Generator': 'it generates from latent codes: there is no input image to predict a difficulty from',
    'DFDNet': 'it needs facial landmarks, a component dictionary and VGG weights besides the image, which a '
    'single-input network does not receive',
    'ClassPruningNet': 'it is a ClassPruning network already: name the architecture inside it',
    'DifficultyClassifier': 'it is a classifier',
    'TimmDifficultyClassifier': 'it is a classifier',
    'VGGStyleDiscriminator': 'it is a discriminator',
    'UNetDiscriminatorSN': 'it is a discriminator',
    'StyleGAN2Discriminator': 'it is a discriminator',
    'MultiScaleDiscriminator': 'it is a discriminator',
    'HiFaceGANDiscriminator': 'it is a discriminator',
    'VGGFeatureExtractor': 'it extracts features for a loss',
    'SpyNet': 'it estimates optical flow from two images',
}


# What the engine's tracing does not look into: it compares sizes, which are not known then.
TRACE_LEAVES = (pixel_unshuffle,)


class NMECB(PrunableLayer, ECB):
    """ECBSR's block with levels: the pattern lies on the one 3x3 kernel into which its branches merge."""

    def dense_values(self) -> tuple[Tensor, Tensor]:
        return ECB.rep_params(self)

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = F.conv2d(x, weight, bias, padding=1)
        return y if self.act_type == 'linear' else self.act(y)

    def run_dense(self, x: Tensor) -> Tensor:
        return ECB.forward(self, x)

    def as_convolution(self) -> Convolution:
        return Convolution(padding=(1, 1), activation=None if self.act_type == 'linear' else self.act)

    def baked_values(self, level: int) -> dict[str, Tensor]:
        """All in ``conv3x3``; the other branches are zeroed, so that BasicSR's merging gives exactly these zeros."""
        weight, bias = self.level_values(level)
        if self.with_idt:
            identity = torch.zeros_like(weight)
            channels = torch.arange(self.out_channels)
            identity[channels, channels, 1, 1] = 1.0
            weight = weight - identity
        branches = {
            name: torch.zeros_like(value)
            for name, value in self.named_parameters()
            if name.startswith('conv1x1_') and not name.endswith('.mask')
        }
        return branches | {'conv3x3.weight': weight, 'conv3x3.bias': bias}


LAYER_ADAPTERS: dict[type[nn.Module], type[PrunableLayer]] = {ECB: NMECB}


@torch.no_grad()
def dense_weight(module: nn.Module) -> Tensor | None:
    """The weight ``[out, in, *kernel]`` that a layer without levels computes with; None: it has none."""
    adapter = LAYER_ADAPTERS.get(type(module))
    return getattr(module, 'weight', None) if adapter is None else adapter.dense_values(module)[0]


def operator_flops() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that PyTorch's counter does not know: deformable convolution, where torchvision has it."""
    if not torchvision.extension._has_ops():
        return {}

    def deformable(_: Any, weight_shape: tuple[int, ...], *rest: Any, out_shape: tuple[int, ...], **__: Any) -> int:
        batch, out_width, height, width = out_shape
        return 2 * batch * height * width * out_width * math.prod(weight_shape[1:])

    return {torch.ops.torchvision.deform_conv2d: deformable}


def set_placements(base: nn.Module) -> None:
    """Tell layers whose outputs are not in image order where they lie: SwinIR's attention works in shifted windows."""
    for block in base.modules():
        if isinstance(block, SwinTransformerBlock):
            for layer in (block.attn.qkv, block.attn.proj):
                if isinstance(layer, PrunableLayer):
                    layer.placement = WindowPlacement(block.window_size, block.shift_size)


def required_multiple(base: nn.Module) -> int:
    """The number of pixels that the network needs lq heights and widths to be a multiple of."""
    windows = [module.window_size for module in base.modules() if isinstance(module, SwinTransformerBlock)]
    if windows:
        return math.lcm(*windows)
    if isinstance(base, RRDBNet):
        return {1: 4, 2: 2}.get(base.scale, 1)  # it folds pixels into channels at these scales
    if isinstance(base, EDVR):
        return 16 if base.hr_in else 4  # strided convolutions, and one shuffle more for inputs of full size
    if isinstance(base, TOFlow):
        return 16  # four halvings, whose flows must fit when they are doubled again
    return 1


def smallest_side(base: nn.Module) -> int:
    """The number of lq pixels that inputs must have along each side."""
    return 64 if isinstance(base, BasicVSRPlusPlus) else 1  # its optical flow is estimated at a quarter of the size


def check_usable(base: nn.Module) -> None:
    """Refuse a network that cannot run here, or that would train wrongly.

    Raises:
        OptionError: it has deformable convolutions, and torchvision was built for another torch; or it recomputes its
            blocks in the backward pass (SwinIR's ``use_checkpoint``), where no route is active any more.
    """
    if any(getattr(module, 'use_checkpoint', False) for module in base.modules()):
        raise OptionError(
            f'network_g.base.use_checkpoint of {type(base).__name__} is true: blocks would be computed again in the '
            'backward pass, without their level. Write `use_checkpoint: false`.'
        )
    deformable = [name for name, module in base.named_modules() if isinstance(module, ModulatedDeformConv)]
    if deformable and not torchvision.extension._has_ops():
        raise OptionError(
            f'{type(base).__name__} needs the compiled operator torchvision.ops.deform_conv2d ({deformable[0]}), but '
            f'torchvision {torchvision.__version__} was built for another PyTorch than {torch.__version__}. '
            'Install the torchvision build that belongs to it.'
        )
