"""torchvision's deformable convolution in plain PyTorch, for machines whose torchvision was built for another torch."""

import functools

import torch
import torch.nn.functional as F

SCHEMA = (
    'deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, '
    'SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, '
    'SymInt offset_groups, bool use_mask) -> Tensor'
)


def deform_conv2d(x, weight, offset, mask, bias, *settings):
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups, use_mask = settings
    assert groups == 1 and use_mask
    batch, channels, height, width = x.shape
    kernel_h, kernel_w = weight.shape[2:]
    rows, columns = offset.shape[2:]
    offset = offset.view(batch, offset_groups, kernel_h * kernel_w, 2, rows, columns)
    mask = mask.view(batch, offset_groups, kernel_h * kernel_w, rows, columns)
    parts = x.view(batch * offset_groups, channels // offset_groups, height, width)
    taps = []
    for tap in range(kernel_h * kernel_w):
        top = torch.arange(rows).view(-1, 1) * stride_h - pad_h + tap // kernel_w * dilation_h
        left = torch.arange(columns).view(1, -1) * stride_w - pad_w + tap % kernel_w * dilation_w
        y, x_ = (top + offset[:, :, tap, 0]).flatten(0, 1), (left + offset[:, :, tap, 1]).flatten(0, 1)
        grid = torch.stack([2 * x_ / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
        sampled = F.grid_sample(parts, grid, align_corners=True) * mask[:, :, tap].flatten(0, 1).unsqueeze(1)
        taps.append(sampled.view(batch, channels, rows, columns))
    return torch.einsum('bckyx,ock->boyx', torch.stack(taps, dim=2), weight.flatten(2)) + bias.view(1, -1, 1, 1)


@functools.cache
def define_operator():
    """Make it the operator ``torchvision::deform_conv2d``, which torchvision.ops.deform_conv2d calls."""
    library = torch.library.Library('torchvision', 'FRAGMENT')
    library.define(SCHEMA)
    library.impl('deform_conv2d', deform_conv2d, 'CPU')

    def backward(ctx, gradient):
        with torch.enable_grad():
            tensors = [value.detach().requires_grad_() for value in ctx.saved_tensors]
            output = deform_conv2d(*tensors, *ctx.settings)
        return *torch.autograd.grad(output, tensors, gradient), *[None] * len(ctx.settings)

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.settings = inputs[5:]

    torch.library.register_autograd('torchvision::deform_conv2d', backward, setup_context=setup_context, lib=library)
    return library
