"""Large images in strips: the same image, within the memory allowed, every halo counted."""

import math
from contextlib import suppress

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from networks import IMAGE_CASES, REACH, WHOLE_CASES, Case
from references import assert_near
from torch import nn
from torch.nn import functional as F

from cp_basicsr.archs import strips
from cp_basicsr.archs.restoring import restore_by_map
from cp_basicsr.archs.strips import WholeImageError, planned_strips
from cp_basicsr.engine import winograd
from cp_basicsr.routing.choice import RoutingChoice

# Bit for bit where terms are added up in the same order, but for networks that interpolate between pixels: positions
# are rounded otherwise in a shorter image.
LOCAL = {
    'EDSR': True, 'EDSR x4': True, 'MSRResNet': False, 'RRDBNet x1': True, 'RRDBNet x2': True, 'RRDBNet x4': True,
    'SRVGGNetCompact': True, 'ECBSR': True, 'ECBSR with identity': True,
}  # fmt: skip
TILE = 8


def large(name, batch=1, rows=None):
    """An input of many times the rows that the network sees, odd where it takes that, and narrow: tests are quick."""
    rows = rows or (301 if name.startswith('RRDB') else 101)
    case, multiple = IMAGE_CASES[name], IMAGE_CASES[name].net().multiple
    size = [-(-side // multiple) * multiple for side in (rows, 19)]
    return torch.rand(batch, case.shape[0], *size, generator=torch.Generator().manual_seed(6))


def random_levels(x):
    rows, columns = (-(-side // TILE) for side in x.shape[-2:])
    return torch.randint(0, 3, (x.shape[0], rows, columns), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def restored_at(limit, net, x, levels, tile, monkeypatch):
    """A restored image within so many bytes, and the heights of what ran for it."""
    heights, run = [], net.run_base

    def remember(part, *arguments, **options):
        heights.append(part.shape[-2])
        return run(part, *arguments, **options)

    net.footprint.limit = limit
    with suppress(WholeImageError):
        planned_strips(net, x, math.lcm(tile or 1, net.multiple))  # so that measuring is over
    with monkeypatch.context() as patch:
        patch.setattr(net, 'run_base', remember)
        return restore_by_map(net, x, levels, tile), heights


@pytest.mark.parametrize('name', LOCAL)
@pytest.mark.parametrize('path', ['compiled', 'compiled term by term', 'reference'])
def test_strips_are_the_whole_image_at_any_levels(name, path, monkeypatch):
    if path == 'reference':
        monkeypatch.setenv('CP_ENGINE', path)
    elif path == 'compiled term by term':
        # Winograd's tiles begin at a strip's upper edge, so its rounding differs from strip to strip.
        monkeypatch.setattr(winograd, 'is_faster', lambda *_: False)
    net, x = IMAGE_CASES[name].net(), large(name, batch=2)
    everywhere = torch.tensor([1, 0])[:, None, None]
    for levels, tile in ((random_levels(x), TILE), (everywhere, None), (random_levels(x) * 0, TILE)):
        whole, _ = restored_at(2**40, net, x, levels, tile, monkeypatch)
        strips, heights = restored_at(1, net, x, levels, tile, monkeypatch)
        assert len(heights) > 9 and max(heights) - min(heights) < TILE
        assert_near(strips.image, whole.image)
        assert not (LOCAL[name] and path == 'compiled term by term') or torch.equal(strips.image, whole.image)
        assert torch.equal(strips.levels, whole.levels) and strips.dense_macs == whole.dense_macs


@pytest.mark.parametrize('name', ['EDSR', 'RRDBNet x2'])
def test_halos_are_counted(name, monkeypatch):
    net, x = IMAGE_CASES[name].net(), large(name)
    levels, width = random_levels(x) * 0 + 1, x.shape[-1]
    whole, _ = restored_at(2**40, net, x, levels, TILE, monkeypatch)
    strips, heights = restored_at(1, net, x, levels, TILE, monkeypatch)
    assert strips.macs == sum(net.macs((3, height, width)).level(1) for height in heights)
    assert strips.macs > 2 * whole.macs == 2 * net.macs(x.shape[1:]).level(1)


@pytest.mark.parametrize('share', [0.3, 0.6])
def test_strips_stay_within_the_limit_and_use_it(share, monkeypatch):
    net, x = IMAGE_CASES['EDSR'].net(), large('EDSR', rows=400)
    restored_at(1, net, x, random_levels(x), TILE, monkeypatch)
    need = net.footprint.bytes_per_pixel * x.shape[-2] * x.shape[-1]
    _, heights = restored_at(int(share * need), net, x, random_levels(x), TILE, monkeypatch)
    assert (share - 0.1) * 400 < max(heights) <= share * 400
    _, heights = restored_at(int(1.01 * need), net, x, random_levels(x), TILE, monkeypatch)
    assert heights == [400]


@pytest.mark.parametrize('name', LOCAL)
def test_the_reach_is_that_of_gradients(name, monkeypatch):
    """With positive weights no gradient is lost: rows with a gradient are those that an output depends on."""
    net, middle = IMAGE_CASES[name].net(), 96
    x = large(name, rows=2 * middle)
    with torch.no_grad():
        restored_at(1, net, x, random_levels(x), TILE, monkeypatch)
        for parameter in net.base.parameters():
            parameter.abs_().add_(0.01)
    x.requires_grad_()
    scale = IMAGE_CASES[name].scale
    net.base(x)[..., middle * scale : (middle + TILE) * scale, :].sum().backward()
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
    reach = max(middle - rows[0], rows[-1] + 1 - middle - TILE)
    found = net.footprint.reach[TILE]
    assert found.step == TILE
    assert -(-found.rows // net.multiple) == reach / net.multiple, (
        'in whole groups of rows that are folded into channels'
    )
    assert reach <= REACH.get(name, 8)


@pytest.mark.parametrize('name', ['RCAN', 'RIDNet', 'SwinIR pixelshuffle'])
def test_what_depends_on_the_whole_image_runs_at_once_after_a_warning(name, monkeypatch, log):
    net, x = IMAGE_CASES[name].net(), large(name, rows=24)
    whole, _ = restored_at(2**40, net, x, random_levels(x), TILE, monkeypatch)
    for _ in range(2):
        attempt, heights = restored_at(1, net, x, random_levels(x), TILE, monkeypatch)
        assert heights == [24]
        assert torch.equal(attempt.image, whole.image) and attempt.macs == whole.macs
    warnings = [line for line in log if line.startswith('WARNING')]
    assert len(warnings) == 1 and net.base_options['type'] in warnings[0] and 'whole image' in warnings[0]


class Halving(nn.Module):
    """Down by two and up again: which rows meet depends on where the image begins."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x):
        y = F.pixel_shuffle(self.up(F.relu(self.middle(F.relu(self.down(x))))), 2)
        return y[..., : x.shape[-2], : x.shape[-1]] + x


@pytest.mark.parametrize('tile', [None, 5, 6])
def test_strips_begin_where_a_halving_network_allows_it(tile, monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Halving', Halving)
    net, x = Case({'type': 'Halving'}).net(), torch.rand(1, 3, 90, 18, generator=torch.Generator().manual_seed(0))
    grid = (1, 1) if tile is None else (-(-90 // tile), -(-18 // tile))
    levels = torch.randint(0, 3, (1, *grid), generator=torch.Generator().manual_seed(1))
    whole, _ = restored_at(2**40, net, x, levels, tile, monkeypatch)
    strips, heights = restored_at(1, net, x, levels, tile, monkeypatch)
    assert len(heights) > 3
    assert_near(strips.image, whole.image)


def test_a_budget_is_routed_before_the_image_is_cut():
    net, x = IMAGE_CASES['EDSR'].net(), large('EDSR')
    net.choice = RoutingChoice(budget=0.7, tile=TILE)
    with torch.no_grad():
        whole = net.restore(x)
        net.footprint.limit = 1
        strips = net.restore(x)
    assert torch.equal(strips.levels, whole.levels)
    assert_near(strips.image, whole.image)
    overhead = net.classifier_macs(x.shape[1:], TILE)
    assert whole.macs - overhead < strips.macs - overhead, 'halos cost'


def test_gradients_and_videos_are_not_cut(monkeypatch):
    net, x = IMAGE_CASES['EDSR'].net(), large('EDSR')
    net.footprint.limit = 1
    x.requires_grad_()
    net(x, level=0).mean().backward()
    assert x.grad.abs().sum() > 0
    video, frames = WHOLE_CASES['DUF'].net(), WHOLE_CASES['DUF'].input()
    video.footprint.limit = 1
    with torch.no_grad():
        assert video(frames, level=0).shape[-1] == 16


def test_the_user_sees_how_far_it_is(capsys):
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    net.footprint.limit = 1
    with torch.no_grad():
        net(large('SRVGGNetCompact'), level=0)
    assert 'strips:' in capsys.readouterr().err


@pytest.mark.parametrize('tile', [8, 16, 12])
@torch.no_grad()
def test_predictions_in_strips_are_those_of_the_whole_image(tile, monkeypatch):
    """Noise above and below a flat part, so that what a prediction depends on shows; rows that fill no tile."""
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    x = torch.rand(2, 3, 901, 40, generator=torch.Generator().manual_seed(0))
    x[..., 300:500, :] = 0.5
    whole = net.predict(x, tile)
    seen, classifier = [], net.classifier.forward
    monkeypatch.setattr(net.classifier, 'forward', lambda x, tile: seen.append(x.shape[-2]) or classifier(x, tile))
    monkeypatch.setattr(strips, 'PREDICTED_AT_ONCE', 96 * 2 * 40)
    found = net.predict(x, tile)
    assert len(seen) > 5 and max(seen) < 500, 'in strips, with their halos'
    assert found.shape == whole.shape == (2, 3, -(-901 // tile), -(-40 // tile))
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_predictions_of_large_tiles_see_their_neighbours_whole(monkeypatch):
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    x = torch.rand(1, 3, 1301, 40, generator=torch.Generator().manual_seed(0))
    whole = net.predict(x, 128)
    seen, classifier = [], net.classifier.forward
    monkeypatch.setattr(net.classifier, 'forward', lambda x, tile: seen.append(x.shape[-2]) or classifier(x, tile))
    monkeypatch.setattr(strips, 'PREDICTED_AT_ONCE', 128 * 40)
    found = net.predict(x, 128)
    assert len(seen) > 3 and max(seen) < 700
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
