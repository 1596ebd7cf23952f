import math

import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.swinir_arch import SwinIR

from cp_basicsr.archs.difficulty_classifier_arch import DifficultyClassifier, TileStatistics
from cp_basicsr.sparsity import trace_macs


def classifier(channels=3, width=8):
    torch.manual_seed(0)
    return DifficultyClassifier(3, channels, width).eval()


def swinir_light(channels):
    options = {'embed_dim': 60, 'depths': [6] * 4, 'num_heads': [6] * 4, 'mlp_ratio': 2, 'window_size': 8}
    return SwinIR(in_chans=channels, img_size=64, upscale=4, upsampler='pixelshuffledirect', **options)


BASES = {
    'EDSR-baseline x2': lambda channels: EDSR(channels, channels, 64, 16, upscale=2, rgb_mean=[0.5] * 3),
    'EDSR-baseline x4': lambda channels: EDSR(channels, channels, 64, 16, upscale=4, rgb_mean=[0.5] * 3),
    'SwinIR-light': swinir_light,
}


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('base', BASES)
@pytest.mark.parametrize('tile', [None, 16])
def test_it_takes_at_most_2_percent_of_the_base(base, channels, tile):
    net = BASES[base](channels)
    if hasattr(net, 'mean') and channels == 1:
        net.mean = net.mean[:, :1]
    dense = trace_macs(net, (1, channels, 64, 64)).dense
    own = trace_macs(DifficultyClassifier(3, channels), (1, channels, 64, 64), tile=tile).dense
    assert 0 < own <= 0.02 * dense


@pytest.mark.parametrize('tile', [1, 4, 5, 8, 12, 16, 64])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 3), (8, 8), (17, 33), (48, 40), (65, 64)])
def test_one_prediction_for_each_tile_of_any_image(tile, size):
    logits = classifier()(torch.rand(2, 3, *size), tile)
    assert logits.shape == (2, 3, -(-size[0] // tile), -(-size[1] // tile))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize('size', [(1, 1), (7, 3), (48, 40)])
def test_one_prediction_for_a_whole_image(size):
    assert classifier(channels=1)(torch.rand(2, 1, *size)).shape == (2, 3, 1, 1)


@pytest.mark.parametrize('tile', [4, 8, 12, 16])
def test_a_tile_far_from_borders_is_predicted_as_in_a_larger_image(tile):
    net, step = classifier(), 48  # a multiple of every tile
    image = torch.rand(1, 3, 192, 192)
    part = image[..., step : step + 144, step : step + 144]
    whole, own = net(image, tile), net(part, tile)
    reach, shift = 2, step // tile  # its neighbour, and that one's neighbour by the 3 pixels that filters see beyond
    inner = slice(reach, own.shape[-1] - reach)
    there = slice(reach + shift, own.shape[-1] - reach + shift)
    assert own[..., inner, inner].numel()
    torch.testing.assert_close(own[..., inner, inner], whole[..., there, there], rtol=1e-4, atol=1e-6)


def test_context_around_a_tile_counts():
    net, image = classifier(), torch.rand(1, 3, 64, 64)
    other = image.clone()
    other[..., 16:20] += 1
    assert not torch.allclose(net(image, 16)[..., 0], net(other, 16)[..., 0])


def test_images_of_a_batch_are_predicted_apart():
    net, batch = classifier(), torch.rand(3, 3, 24, 40)
    together = net(batch, 8)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], net(batch[b : b + 1], 8), rtol=1e-4, atol=1e-6)


def test_statistics_of_a_tile_by_loops():
    """The first and the coarse Laplacian's of one inner tile, pixel by pixel."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 24, 24)
    statistics = TileStatistics()(image, 8)
    assert statistics.shape == (1, TileStatistics.width, 3, 3)
    gray = 4 * image[0].double().mean(dim=0)
    inner = range(8, 16)
    assert statistics[0, 0, 1, 1].item() == pytest.approx(
        sum(float(gray[y, x]) for y in inner for x in inner) / 64 - 2, rel=1e-4
    )
    smooth = (gray[:-1, :-1] + gray[1:, :-1] + gray[:-1, 1:] + gray[1:, 1:]) / 4
    for first, plane, spread in ((1, gray, 1), (19, smooth, 2)):
        around = ((spread, 0), (-spread, 0), (0, spread), (0, -spread))
        values = [
            abs(sum(float(plane[y + dy, x + dx]) for dy, dx in around) - 4 * float(plane[y, x]))
            for y in inner
            for x in inner
        ]
        expected = [
            math.log(sum(values) / 64 + 3e-3) + 2,
            math.log(sum(value**2 for value in values) / 64 + 9e-6) / 2 + 1.5,
            math.log(max(values) + 3e-3),
        ]
        found = [statistics[0, first + 6 * kind, 1, 1].item() for kind in range(3)]
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_whole_image_is_one_tile():
    net, image = classifier(), torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(net(image), net(image, 24))


def test_it_is_built_by_name():
    net = build_network({'type': 'DifficultyClassifier', 'num_levels': 4, 'in_channels': 1, 'num_feat': 4})
    assert net(torch.zeros(1, 1, 8, 8), 8).shape == (1, 4, 1, 1)
