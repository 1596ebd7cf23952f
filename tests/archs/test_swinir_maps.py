"""SwinIR on feature maps against BasicSR's own, on tokens in windows."""

import pytest
import torch
from basicsr.archs import build_network
from references import assert_near

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.restoring import restore_by_map
from cp_basicsr.engine.window_attention import window_attention
from cp_basicsr.sparsity import LevelMapRoute, UniformRoute, routed
from cp_basicsr.sparsity.placement import TileGrid

SMALL = {
    'type': 'SwinIR', 'in_chans': 3, 'img_size': 16, 'window_size': 8, 'embed_dim': 12, 'depths': [2, 1],
    'num_heads': [2, 3], 'mlp_ratio': 2, 'upscale': 2, 'upsampler': 'pixelshuffle', 'img_range': 1.0,
}  # fmt: skip
CASES = {
    'pixelshuffle': {},
    'pixelshuffledirect': {'upsampler': 'pixelshuffledirect', 'upscale': 3},
    'nearest+conv': {'upsampler': 'nearest+conv', 'upscale': 4},
    'denoising': {'upsampler': '', 'upscale': 1, 'img_range': 255.0},
    'gray': {'upsampler': '', 'upscale': 1, 'in_chans': 1},
    '3conv': {'resi_connection': '3conv', 'embed_dim': 24},
    'wide heads': {'embed_dim': 72, 'num_heads': [2, 3]},
    'one channel a head': {'num_heads': [12, 6]},
    'no norm of patches, no bias of qkv': {'patch_norm': False, 'qkv_bias': False},
    'a scale of its own': {'qk_scale': 0.3},
    'one window at training size': {'img_size': 8},
}


def build(name):
    torch.manual_seed(0)
    net = ClassPruningNet(SMALL | CASES[name], {'m': 4, 'levels': [1, 2, 4]}).eval()
    with torch.no_grad():
        for key, value in net.base.named_parameters():  # norms and position biases that do something
            if 'norm' in key or 'relative_position' in key:
                value.add_(0.3 * torch.randn(value.shape))
    return net


def image(net, height, width, batch=2):
    return torch.rand(batch, net.in_channels, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('isa', ['avx512', 'avx2'])
def test_it_computes_what_swinir_does(name, isa, monkeypatch, log):
    monkeypatch.setenv('CP_ENGINE', isa)
    net = build(name)
    for height, width in ((16, 24), (8, 8), (8, 40), (40, 8)):
        x, tile = image(net, height, width), 5
        levels = torch.randint(
            3, (2, -(-height // tile), -(-width // tile)), generator=torch.Generator().manual_seed(1)
        )
        grid = TileGrid(levels, tile, height, width)
        for new_route in (lambda: UniformRoute(0), lambda: UniformRoute(2), lambda grid=grid: LevelMapRoute(grid)):
            route, reference = new_route(), new_route()
            output = net.run_base(x, route)
            with routed(reference):
                assert_near(output, net.base(x))
            assert route.positions == reference.positions
    (line,) = log
    if f'compiled {isa} code' not in line:
        pytest.skip(line)
    assert 'layer by layer' not in line


@torch.no_grad()
def test_a_map_of_one_level_is_the_plain_subnet_and_the_densest_the_plain_network():
    net = build('pixelshuffle')
    x = image(net, 16, 16)
    for level in range(3):
        restored = restore_by_map(net, x, torch.full((2, 2, 2), level), 8)
        assert_near(restored.image, net.bake(level)(x))
        assert restored.macs == 2 * net.macs((3, 16, 16)).level(level)
    plain = build_network(SMALL).eval()
    plain.load_state_dict(net.bake(-1).state_dict())
    assert_near(net(x, level=-1), plain(x))


@torch.no_grad()
def test_tiles_that_no_other_level_reaches_equal_their_subnet():
    """Two blocks: an output sees the windows that its shifted window touches, at most 12 pixels, and 4 convolutions."""
    net = build('denoising')
    x = image(net, 8, 96, batch=1)
    levels = torch.tensor([[[0] * 6 + [2] * 6]])
    output = restore_by_map(net, x, levels, 8).image
    reach = 8 + 12 + 12 + 8
    easy, hard = net.bake(0)(x), net.bake(2)(x)
    assert_near(output[..., : 48 - reach], easy[..., : 48 - reach])
    assert_near(output[..., 48 + reach :], hard[..., 48 + reach :])
    assert not torch.allclose(output[..., :48], easy[..., :48], rtol=1e-4, atol=1e-5), 'neighbours are read'


def attention_by_hand(qkv, heads, shift, bias, scale):
    """Window by window and head by head, on windows cut from the shifted map."""
    images, channels, height, width = qkv.shape
    width_of_head = channels // 3 // heads
    moved = qkv.double().roll((-shift, -shift), dims=(2, 3))
    result = torch.empty(images, channels // 3, height, width, dtype=torch.float64)
    for image_ in range(images):
        for top in range(0, height, 8):
            for left in range(0, width, 8):
                joined = (left == width - 8) + 2 * (top == height - 8) if shift else 0
                window = moved[image_, :, top : top + 8, left : left + 8].reshape(3, heads, width_of_head, 64)
                for head in range(heads):
                    q, k, v = window[:, head]
                    scores = scale * q.T @ k + bias[joined, head].T.double()
                    own = v @ scores.softmax(dim=1).T
                    channel = head * width_of_head
                    place = (
                        image_,
                        slice(channel, channel + width_of_head),
                        slice(top, top + 8),
                        slice(left, left + 8),
                    )
                    result[place] = own.view(width_of_head, 8, 8)
    return result.roll((shift, shift), dims=(2, 3))


@pytest.mark.parametrize(('heads', 'width'), [(1, 1), (3, 10), (2, 16), (2, 17), (1, 40)])
@pytest.mark.parametrize('shift', [0, 4])
def test_attention(heads, width, shift):
    generator = torch.Generator().manual_seed(width)
    qkv = torch.randn(2, 3 * heads * width, 16, 24, generator=generator)
    bias = torch.randn(4, heads, 64, 64, generator=generator)
    bias[1:, :, :32, 32:] -= 100.0
    expected = attention_by_hand(qkv, heads, shift, bias, 0.4)
    assert_near(window_attention(qkv, heads, shift, bias, 0.4), expected)
    wider = torch.cat([qkv, qkv], 3)[..., :24]
    assert_near(window_attention(wider, heads, shift, bias, 0.4), expected)


@pytest.mark.parametrize('value', [1e4, -1e4])
def test_attention_to_scores_far_apart(value):
    qkv = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(4, 2, 64, 64)
    bias[0, :, 5] = value
    output = window_attention(qkv, 2, 0, bias, 1.0)
    assert_near(output, attention_by_hand(qkv, 2, 0, bias, 1.0))


def test_nan_spoils_its_window_and_no_other():
    qkv = torch.randn(1, 6, 8, 24, generator=torch.Generator().manual_seed(0))
    qkv[0, 4, 3, 12] = torch.nan  # of the first head's values
    output = window_attention(qkv, 1, 0, torch.zeros(4, 1, 64, 64), 1.0)
    assert output[0, 0, :, 8:16].isnan().all() and output.isnan().sum() == 64


@torch.no_grad()
def test_sizes_that_no_window_divides_are_refused():
    net = build('pixelshuffle')
    net.run_level(torch.rand(1, 3, 16, 16), 0)
    for size in ((12, 16), (16, 20)):
        with pytest.raises((RuntimeError, ValueError)):
            net.run_level(torch.rand(1, 3, *size), 0)
