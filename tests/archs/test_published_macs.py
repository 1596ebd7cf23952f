import pytest
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.swinir_arch import SwinIR

from cp_basicsr.sparsity import NMPattern, convert, prunable_layers, trace_macs

PATTERN = NMPattern(4, [1, 2, 4])
COUNTS = (1, 2, 4)


def test_edsr_baseline_equals_its_closed_form():
    net = EDSR(3, 3, num_feat=64, num_block=16, upscale=4, res_scale=1)
    convert(net, PATTERN)
    macs = trace_macs(net, (1, 3, 48, 32))
    pixels = 48 * 32
    fixed = pixels * 9 * 3 * 64
    prunable = pixels * 9 * (33 * 64 * 64 + 64 * 256 + 4 * 64 * 256 + 16 * 64 * 3)
    assert [macs.level(k) for k in range(3)] == [fixed + prunable * n // 4 for n in COUNTS]
    assert len(prunable_layers(net)) == 36


def test_swinir_light_equals_the_published_count():
    net = SwinIR(
        upscale=4, img_size=64, window_size=8, embed_dim=60, depths=[6] * 4, num_heads=[6] * 4, mlp_ratio=2,
        upsampler='pixelshuffledirect',
    )  # fmt: skip
    convert(net, PATTERN)
    macs = trace_macs(net, (1, 3, 64, 64))
    pixels, blocks = 64 * 64, 24
    attention = blocks * 2 * pixels * 64 * 60
    fixed = pixels * 9 * 3 * 60 + attention
    prunable = pixels * (blocks * (60 * 180 + 60 * 60 + 2 * 60 * 120) + 9 * (5 * 60 * 60 + 60 * 48))
    assert macs.dense == fixed + prunable == pytest.approx(4.3625e9, rel=1e-4)
    assert [macs.level(k) for k in range(3)] == [fixed + prunable * n // 4 for n in COUNTS]
