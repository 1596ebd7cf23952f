"""Compiled statistics of tiles, against the classifier's own PyTorch path in double precision; and who takes which."""

import platform
from types import SimpleNamespace

import pytest
import torch
from compiled import needs_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding

from cp_basicsr.archs.difficulty_classifier_arch import GAIN, HIGH_PASS, SPREADS, DifficultyClassifier, TileStatistics
from cp_basicsr.engine import host, machine_code, native, tile_statistics

pytestmark = needs_engine
TILES = st.one_of(st.none(), st.integers(1, 80))
SIDES = st.integers(1, 70)


def compiled(x, tile):
    return tile_statistics.tile_statistics(x, tile, GAIN, HIGH_PASS, SPREADS)


def expected(x, tile):
    return TileStatistics().double()._contrast_in_pytorch(x.double(), tile)


def assert_same(x, tile):
    """Within 1e-5 and the rounding of differences between neighbours, of values up to ``GAIN``."""
    for found, wanted in zip(compiled(x, tile), expected(x, tile), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=4e-6)


@pytest.fixture(params=['this processor', 'AVX2 alone'], scope='module')
def processor(request):
    """Code for all that this processor has, or for one without AVX-512."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 'AVX2 alone':
            target = binding.Target.from_default_triple()
            patch.setattr(
                native, 'new_target_machine', lambda: target.create_target_machine(cpu='haswell', opt=3, jit=True)
            )
            tile_statistics._routine.cache_clear()
        yield
    tile_statistics._routine.cache_clear()


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 3), (16, 16), (17, 33), (65, 48), (70, 131)])
@pytest.mark.parametrize('tile', [None, 1, 5, 16, 33, 64, 100])
def test_it_computes_what_pytorch_does(size, tile, processor):
    assert_same(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)), tile)


@settings(max_examples=80, deadline=None)
@given(
    images=st.integers(1, 3), channels=st.integers(1, 5), height=SIDES, width=SIDES, tile=TILES,
    seed=st.integers(0, 2**20), kind=st.sampled_from(['noise', 'flat', 'blocks', 'large']),
)  # fmt: skip
def test_any_images_and_tiles(images, channels, height, width, tile, seed, kind):
    x = torch.rand(images, channels, height, width, generator=torch.Generator().manual_seed(seed))
    if kind == 'flat':
        x = x[..., :1, :1].expand(x.shape)
    elif kind == 'blocks':
        x = (x[..., ::4, ::4] * 8).round() / 8
    elif kind == 'large':
        x[0] *= 1 - 2 * x[0]
    assert_same(x, tile)


@settings(max_examples=40, deadline=None)
@given(
    height=SIDES, width=SIDES, tile=TILES, seed=st.integers(0, 2**20),
    layout=st.sampled_from(['channels_last', 'transposed', 'cropped', 'reversed rows', 'one image for all']),
)  # fmt: skip
def test_any_layout_in_memory(height, width, tile, seed, layout):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    if layout == 'channels_last':
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == 'transposed':
        x = x.transpose(2, 3)
    elif layout == 'cropped':
        x = torch.nn.functional.pad(x, (3, 5, 2, 1), value=torch.nan)[..., 2:-1, 3:-5]
    elif layout == 'reversed rows':
        x = x.flip(1)[:, ::2, :, ::2]
    else:
        x = x[:1].expand(4, -1, -1, -1)
    assert_same(x, tile)


def test_sums_over_many_pixels_are_as_exact_as_over_few():
    """Few values, over and over: errors of adding them up one by one would not cancel."""
    blocks = (torch.arange(1501)[None] // 2 + torch.arange(2003)[:, None] // 2) % 2
    x = 0.3 * blocks[None, None]
    for found, wanted in zip(compiled(x, None), expected(x, None), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_threads_do_not_change_a_bit():
    x, before = torch.rand(2, 3, 130, 75), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(compiled(x, 12))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, results[0], strict=True))


@settings(max_examples=40, deadline=None)
@given(
    height=SIDES, width=SIDES, tile=TILES, seed=st.integers(0, 2**20), count=st.integers(1, 4),
    value=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
)  # fmt: skip
def test_nan_and_infinity_spoil_the_tiles_that_they_spoil_in_pytorch(height, width, tile, seed, count, value):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 2, height, width, generator=generator)
    x.view(-1)[torch.randint(x.numel(), (count,), generator=generator)] = value
    found, wanted = (torch.cat(parts, dim=1)[0] for parts in (compiled(x, tile), expected(x, tile)))
    sound = wanted.isfinite().all(dim=0)
    assert torch.equal(found.isfinite().all(dim=0), sound)
    torch.testing.assert_close(found[:, sound], wanted[:, sound].float(), rtol=1e-5, atol=4e-6)


@pytest.fixture
def runs(monkeypatch, compiled_code):
    """One entry for each run of the compiled statistics, while the best engine here is chosen."""
    calls, run = [], tile_statistics.tile_statistics
    monkeypatch.setattr(tile_statistics, 'tile_statistics', lambda *options: calls.append(options) or run(*options))
    return calls


@pytest.fixture
def net():
    torch.manual_seed(0)
    return DifficultyClassifier(3, num_feat=8).eval()


@torch.no_grad()
@pytest.mark.parametrize('tile', [None, 4, 16])
def test_the_classifier_takes_it_and_predicts_the_same(net, runs, tile, monkeypatch):
    x = torch.rand(2, 3, 50, 70)
    x[0] = x[0, :, :1, :1]  # a flat image: only rounding is left of its contrast
    found = net(x, tile)
    assert len(runs) == 1
    monkeypatch.setenv('CP_ENGINE', 'reference')
    wanted = net(x, tile)
    assert len(runs) == 1
    torch.testing.assert_close(found.log_softmax(dim=1), wanted.log_softmax(dim=1), rtol=0, atol=1e-4)


def refuse_memory(monkeypatch):
    tile_statistics._routine.cache_clear()
    monkeypatch.setattr(machine_code, '_libc', SimpleNamespace(mprotect=lambda *_: -1))


def another_processor(monkeypatch):
    monkeypatch.delenv('CP_ENGINE')
    host.processor_sets.cache_clear()
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')


@torch.no_grad()
@pytest.mark.parametrize('change', [refuse_memory, another_processor])
def test_where_no_code_can_run_pytorch_does(net, change, compiled_code, monkeypatch):
    x = torch.rand(1, 3, 20, 30)
    wanted = net.statistics._contrast_in_pytorch(x, 8)
    change(monkeypatch)
    try:
        assert all(torch.equal(*pair) for pair in zip(net.statistics._contrast(x, 8), wanted, strict=True))
    finally:
        host.processor_sets.cache_clear()


def test_gradients_training_and_other_types_stay_in_pytorch(net, runs):
    x = torch.rand(1, 3, 20, 30, requires_grad=True)
    net(x, 8).sum().backward()
    assert x.grad.abs().sum() > 0
    with torch.no_grad():
        net.train()(x, 8)
        net.eval().double()(x.double(), 8)
        net.to('meta')(x.double().to('meta'), 8)
    assert not runs


@torch.no_grad()
def test_what_is_traced_is_no_constant(net, compiled_code):
    x, other = torch.rand(2, 1, 3, 24, 32)
    exported = torch.export.export(net, (x, 8), strict=False).module()
    traced = torch.jit.trace(lambda image: net.statistics(image, 8), x)
    torch.testing.assert_close(exported(other, 8), net(other, 8), rtol=0, atol=1e-4)
    torch.testing.assert_close(traced(other), net.statistics(other, 8), rtol=0, atol=1e-4)
