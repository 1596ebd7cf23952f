"""Cut tiles: where they lie, that they run grouped, that enough overlap is exact, and what it costs."""

from collections import Counter
from itertools import product

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from networks import IMAGE_CASES, WHOLE_CASES, Case
from torch import nn

from cp_basicsr.archs.restoring import restore_by_map
from cp_basicsr.engine.batched_tiles import cut_tiles, run_cut_tiles, spans
from cp_basicsr.routing import BudgetError
from cp_basicsr.routing.choice import RoutingChoice

pytestmark = pytest.mark.usefixtures('one_thread')

# lq pixels to each side that an output pixel sees, at most.
REACH = {'EDSR': 8, 'SRVGGNetCompact': 4, 'SwinIR colour denoising': 16, 'SwinIR nearest+conv': 16}


def sides(length, *arguments):
    return [(span.own_start, span.own_stop, span.start, span.stop) for span in spans(length, *arguments)]


def test_a_side_is_cut_into_tiles_with_their_overlap_as_far_as_the_image_goes():
    assert sides(40, 16, 4) == [(0, 16, 0, 20), (16, 32, 12, 36), (32, 40, 28, 40)]
    assert sides(16, 16, 4) == sides(16, 64, 4) == [(0, 16, 0, 16)]
    assert sides(3, 2, 0) == [(0, 2, 0, 2), (2, 3, 2, 3)]


def test_windows_begin_and_end_where_the_network_can():
    assert sides(40, 16, 3, 8) == [(0, 16, 0, 24), (16, 32, 8, 40), (32, 40, 24, 40)]
    assert sides(24, 10, 0, 4) == [(0, 10, 0, 12), (10, 20, 8, 20), (20, 24, 20, 24)]


def test_windows_are_as_large_as_the_network_needs_where_the_image_is():
    assert sides(40, 16, 0, 1, 24) == [(0, 16, 0, 24), (16, 32, 8, 32), (32, 40, 16, 40)]
    assert sides(20, 16, 0, 4, 24) == [(0, 16, 0, 20), (16, 20, 0, 20)]


@pytest.mark.parametrize('shape', [(2, 3, 40, 24), (2, 5, 3, 40, 24)])
def test_tiles_of_one_level_and_size_run_together_and_return_to_their_place(shape):
    x = torch.rand(shape)
    levels = torch.randint(0, 3, (2, 3, 2), generator=torch.Generator().manual_seed(0))
    seen = []

    def run(batch, level):
        seen.append((level, tuple(batch.shape)))
        return (batch + 10 * level).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2), len(batch)

    output, count = run_cut_tiles(run, x, levels, cut_tiles(40, 24, 16, 4), 1200)
    expected = x + 10 * levels.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None, :40, :24].view(
        2, *[1] * (x.dim() - 3), 40, 24
    )
    assert torch.equal(output, expected.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2))
    assert count == 12
    area = {(0, 0): 400, (0, 1): 240, (1, 0): 480, (1, 1): 288, (2, 0): 240, (2, 1): 144}
    members = Counter((int(levels[b, r, c]), (r, c)) for b, r, c in product(range(2), range(3), range(2)))
    assert len(seen) == sum(-(-n // (1200 // area[where])) for (_, where), n in members.items())
    assert all(shape[0] * shape[-1] * shape[-2] <= 1200 for _, shape in seen)


@pytest.mark.parametrize('name', REACH)
def test_with_the_overlap_that_a_network_sees_each_tile_is_its_whole_image_subnet(name):
    case, reach = IMAGE_CASES[name], REACH[name]
    net = case.net()
    x = torch.rand(2, 3, 56, 40, generator=torch.Generator().manual_seed(1))
    levels = torch.randint(0, 3, (2, 4, 3), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = [net(x, level=level) for level in range(3)]
        mixed = restore_by_map(net, x, levels, 16, reach)
        for level in range(3):
            alone = restore_by_map(net, x, torch.full_like(levels, level), 16, reach)
            torch.testing.assert_close(alone.image, whole[level], rtol=1e-4, atol=1e-5)
        narrow = restore_by_map(net, x, torch.full_like(levels, 2), 16, 0)
    side = 16 * case.scale
    chosen = levels.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None, : 56 * case.scale, : 40 * case.scale]
    expected = torch.stack(whole).gather(0, chosen.expand_as(whole[0])[None])[0]
    torch.testing.assert_close(mixed.image, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(narrow.image, whole[2], rtol=1e-3, atol=1e-4), 'the test would show nothing'
    assert not torch.allclose(whole[0], whole[2], rtol=1e-3, atol=1e-4), 'the test would show nothing'


def test_the_overlap_is_paid_for_at_the_true_size_of_every_tile():
    net = IMAGE_CASES['SRVGGNetCompact'].net()
    x = torch.rand(2, 3, 24, 40)
    # Rows 0-20 and 12-24, columns 0-20, 12-36 and 28-40; a pixel costs 27 x 8 (dense) and N/4 of two layers 8 x 8 and
    # one 8 x 27, at 9 taps.
    rows, columns = (20, 12), (20, 24, 12)
    levels = torch.tensor([[[0, 1, 2], [2, 2, 0]], [[1, 1, 1], [0, 0, 0]]])
    expected = sum(
        rows[r] * columns[c] * (27 * 8 + net.levels[levels[b, r, c]] * 9 * (2 * 8 * 8 + 8 * 27) // 4)
        for b, r, c in product(range(2), range(2), range(3))
    )
    with torch.no_grad():
        restored = restore_by_map(net, x, levels, 16, 4)
    assert restored.macs == expected
    assert restored.dense_macs == 2 * 24 * 40 * 9 * (3 * 8 + 2 * 8 * 8 + 8 * 27)
    assert (restored.tile, restored.scale) == (16, 3)


@pytest.mark.parametrize('share', [0.2, 0.5, 0.8])
def test_a_budget_holds_the_overlap_and_the_classifier(share):
    net = IMAGE_CASES['EDSR'].net()
    x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    shape = x.shape[1:]
    overlap_factor = (20 + 4 * 24 + 20) * (20 + 6 * 24 + 20) / (96 * 128)
    lowest, highest = (overlap_factor * float(net.costs(shape)[level]) + net.overhead(shape, 16) for level in (0, -1))
    choice = RoutingChoice(budget=lowest + share * (highest - lowest), tile=16, overlap=4)
    with torch.no_grad():
        restored = net.restore(x, choice)
        assert restored.macs_share == pytest.approx(choice.budget, abs=0.02)
        assert restored.levels.shape == (1, 6, 8)
        with pytest.raises(BudgetError, match=rf'to {highest:.3f} \(every tile dense\)'):
            net.restore(x, RoutingChoice(budget=highest + 0.01, tile=16, overlap=4))
    with pytest.raises(BudgetError, match=f'allow: {lowest:.3f}'):
        net.check_budget(lowest - 0.01, shape, 16, overlap=4)


def test_an_image_smaller_than_a_tile_is_one_tile():
    net = IMAGE_CASES['RRDBNet x2'].net()
    x = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        restored = net.restore(x, RoutingChoice(tile=64, overlap=8))
        assert torch.equal(restored.image, net(x, level=int(restored.levels)))
    assert restored.macs == net.macs(x.shape[1:]).level(int(restored.levels)) + net.classifier_macs(x.shape[1:], 64)


def test_videos_are_routed_by_cut_tiles_if_asked_to():
    case = WHOLE_CASES['TOFlow']
    net = case.net()
    x = torch.rand(1, 7, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert net.restore(x, RoutingChoice(tile=16)).tile is None
        restored = net.restore(x, RoutingChoice(tile=16, overlap=10))  # windows are widened to multiples of 16
    assert restored.image.shape == (1, 3, 32, 48) and restored.image.isfinite().all()
    assert restored.levels.shape == (1, 2, 3)
    windows = {(r, c): (32, (32, 48, 32)[c]) for r in range(2) for c in range(3)}
    spent = sum(net.macs((7, 3, *windows[r, c])).level(int(restored.levels[0, r, c])) for r, c in windows)
    assert restored.macs == spent + net.classifier_macs(x.shape[1:], 16)


def test_a_network_without_places_is_routed_by_cut_tiles_if_asked_to(log):
    class Wide(nn.Module):
        """Its middle map is larger than the image by two pixels."""

        def __init__(self):
            super().__init__()
            self.head, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=2)
            self.tail = nn.Conv2d(8, 3, 3)

        def forward(self, x):
            return self.tail(self.wide(self.head(x).relu()).relu())

    ARCH_REGISTRY.register(Wide)
    try:
        net = Case({'type': 'Wide'}).net()
    finally:
        del ARCH_REGISTRY._obj_map['Wide']
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        by_tile = net.restore(x, RoutingChoice(budget=1.0, tile=16, overlap=4))
        assert (by_tile.tile, by_tile.levels.shape, len(by_tile.levels.unique()) > 1) == (16, (1, 4, 4), True)
        assert 'routed by image' not in ''.join(log)
        assert net.restore(x, RoutingChoice(budget=1.0, tile=16)).tile is None
        assert 'With `tile: {size: 64, overlap: 8}` under val it would be cut' in ''.join(log)
