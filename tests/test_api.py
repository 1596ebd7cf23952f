"""The Python interface: what the documentation shows runs, and each kind of array and tensor is restored as asked."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import IMAGE_CASES
from pictures import GRAY_X1, at_level, checkpoint, same_pixels, scene
from training import batch_of

import cp_basicsr
from cp_basicsr import restorer
from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.models.calibrating import calibrate
from cp_basicsr.options import OptionError
from cp_basicsr.pixels import PictureError
from cp_basicsr.routing.policy import BudgetError
from cp_basicsr.sparsity.pattern import PatternError

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def net(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A calibrated colour network x2, trained for a budget of 0.7 and tiles of 8; its checkpoint is `net.file`."""
    file = tmp_path_factory.mktemp('model') / 'net_g_latest.pth'
    net = checkpoint(file)
    calibrate(net, [batch_of(0)['lq']], 0.7, 8)
    torch.save({'params': net.state_dict()}, file)
    net.file = file
    return net


@pytest.fixture
def model(net: Any) -> Any:
    return cp_basicsr.load(net.file)


def test_the_example_of_the_documentation_runs(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    example = textwrap.dedent(re.search(r'(    import cp_basicsr.*?)\n\nNo', restorer.__doc__, re.S)[1])
    assert len([line for line in example.splitlines() if line.strip()]) <= 6
    monkeypatch.chdir(net.file.parent)
    names: dict[str, Any] = {}
    exec(example, names)
    result, picture = names['result'], names['picture']
    assert result.image.shape == (2 * picture.shape[0], 2 * picture.shape[1], 3) and result.image.dtype == np.uint8
    assert result.macs_share == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', '>u2', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('channels', [1, 3])
def test_arrays_come_back_as_they_are_given(dtype: str, channels: int, net: Any, model: Any) -> None:
    deep = scene(channels=channels, deep=True)
    picture = {'u': deep // (257 if dtype == 'uint8' else 1), 'f': deep / 65535}[np.dtype(dtype).kind].astype(dtype)
    given = picture.copy()
    result = model.restore(picture, level=0)
    assert result.image.dtype == np.dtype(dtype).newbyteorder('=') and np.array_equal(picture, given)
    largest = {'uint8': 255, 'float16': 300}.get(dtype, 60000)
    whole = picture if picture.dtype.kind == 'u' else (picture.astype(np.float64) * 65535).round().astype(np.uint16)
    found = result.image.astype(np.float64) / (np.iinfo(picture.dtype).max if picture.dtype.kind == 'u' else 1)
    expected = at_level(net, whole.astype(whole.dtype.newbyteorder('=')), 0)
    assert np.abs(found - expected).max() < 2 / largest
    assert result.tile_side is None and result.levels.tolist() == [[0]]
    assert result.macs_share == pytest.approx(float(net.costs((3, 40, 56))[0]))


def test_views_read_only_arrays_and_a_third_axis_of_one(net: Any, model: Any) -> None:
    picture = scene()
    picture.setflags(write=False)
    turned = picture[::-1, :, ::-1]
    same_pixels(model.restore(turned, level=-1).image, at_level(net, np.ascontiguousarray(turned), -1))
    gray = model.restore(picture[..., :1], level=-1).image
    assert gray.shape == (80, 112, 1)
    same_pixels(gray[..., 0], at_level(net, picture[..., 0], -1))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize('shape', [(3, 24, 32), (1, 24, 32), (2, 3, 24, 32)])
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...], net: Any, model: Any) -> None:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    picture = (values * 255).to(dtype) if dtype == torch.uint8 else values.to(dtype)
    result = model.restore(picture, level=-1)
    assert result.image.dtype == dtype and result.image.shape == (*shape[:-2], 48, 64)
    x = picture.float() / (255 if dtype == torch.uint8 else 1)
    with torch.no_grad():
        y = net.bake(-1)(x.reshape(-1, shape[-3], 24, 32).expand(-1, 3, -1, -1)).clamp(0, 1)
    if shape[-3] == 3:
        found = result.image.float() / (255 if dtype == torch.uint8 else 1)
        torch.testing.assert_close(found.reshape(y.shape), y, rtol=0, atol=3e-3)
    assert result.levels.shape == ((2, 1, 1) if len(shape) == 4 else (1, 1))


def test_without_a_word_the_network_routes_as_it_was_trained(net: Any, model: Any) -> None:
    picture = scene(96, 128)
    result = model.restore(picture)
    assert result.tile_side == 16 and result.levels.shape == (12, 16)
    assert result.macs_share == pytest.approx(0.7, abs=0.03)
    same = model.restore(picture, budget=0.7, tile=8)
    assert np.array_equal(same.levels, result.levels) and np.array_equal(same.image, result.image)
    assert model.restore(picture, tile=None).levels.shape == (1, 1)
    assert model.restore(picture, tile=32).levels.shape == (3, 4)


def test_cut_tiles_that_see_enough_give_what_each_subnet_gives_of_the_whole_picture(net: Any, model: Any) -> None:
    picture = scene(96, 128)
    result = model.restore(picture, budget=1.87, tile=32, overlap=8)  # the network sees 4 pixels to each side
    assert result.levels.shape == (3, 4) and result.macs_share > 1.2, 'the overlap is counted'
    assert np.array_equal(result.image, model.restore(picture, level=-1).image)
    mixed = model.restore(picture, budget=1.1, tile=32, overlap=8)
    assert mixed.macs_share == pytest.approx(1.1, abs=0.05)
    wholes = np.stack([model.restore(picture, level=level).image for level in range(3)])
    levels = mixed.levels.repeat(64, axis=0).repeat(64, axis=1)
    expected = np.take_along_axis(wholes, levels[None, :, :, None], axis=0)[0]
    assert len(np.unique(mixed.levels)) > 1
    assert np.abs(mixed.image.astype(int) - expected).max() <= 1


def test_precision_is_what_was_asked_for(model: Any) -> None:
    picture = scene(96, 128, deep=True)
    exact, half = (model.restore(picture, budget=0.7, precision=name) for name in ('fp32', 'bf16'))
    assert np.array_equal(exact.levels, half.levels), 'the classifier keeps its own'
    difference = np.abs(exact.image.astype(float) - half.image).mean() / 65535
    assert 1e-5 < difference < 1e-2


def test_a_drawn_map_has_the_picture_and_a_legend(model: Any) -> None:
    for picture in (scene(96, 128), scene(96, 128, channels=1), scene(96, 128, channels=4, deep=True)):
        drawn = model.draw_levels(model.restore(picture, budget=0.7))
        assert drawn.shape == (192 + 24, 256, 3) and drawn.dtype == np.uint8
    with pytest.raises(PictureError, match='drawn over arrays'):
        model.draw_levels(model.restore(torch.rand(3, 16, 16), level=0))


def test_large_pictures_are_the_same_in_strips(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest memory leaves room for the smallest strips only."""
    picture = scene(160, 48)
    whole = cp_basicsr.load(net.file).restore(picture, budget=0.7)
    monkeypatch.setattr(restorer, 'LEAST_LIMIT', 1)
    strips = cp_basicsr.load(net.file, memory=0.1).restore(picture, budget=0.7)
    assert np.array_equal(strips.levels, whole.levels)
    assert np.abs(strips.image.astype(int) - whole.image).max() <= 1
    assert strips.macs > 1.1 * whole.macs and strips.dense_macs == whole.dense_macs


def test_networks_that_see_the_whole_picture_run_in_strips_that_differ_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    checkpoint(tmp_path / 'rcan.pth', IMAGE_CASES['RCAN'].base)
    picture = scene(400, 24)
    whole = cp_basicsr.load(tmp_path / 'rcan.pth').restore(picture, level=1)
    monkeypatch.setattr(restorer, 'LEAST_LIMIT', 1)
    strips = cp_basicsr.load(tmp_path / 'rcan.pth', memory=0.1).restore(picture, level=1)
    assert strips.macs > 1.1 * whole.macs
    assert np.abs(strips.image.astype(int) - whole.image).mean() < 2
    assert [line for line in log if 'RCAN depends on the whole image' in line and 'strips that see 64 rows' in line]


class Names:
    """Something that is no picture."""


@pytest.mark.parametrize(
    ('picture', 'message'),
    [
        (Names(), 'Names is no picture; allowed: NumPy arrays and PyTorch tensors'),
        (np.zeros((4, 4), np.int32), r'int32 cannot be restored; allowed: uint8, uint16, float'),
        (np.zeros((4, 4), np.uint32), r'uint32 cannot be restored; allowed: uint8, uint16, float'),
        (np.zeros((4, 4), 'U1'), r'cannot be restored; allowed: uint8, uint16, float'),
        (np.zeros((4, 4, 5), np.uint8), r'shape \(4, 4, 5\) cannot be restored; allowed: arrays \[H, W\]'),
        (np.zeros((0, 4, 3), np.uint8), r'shape \(0, 4, 3\) cannot'),
        (np.zeros(4, np.uint8), r'shape \(4,\) cannot'),
        (torch.zeros(4, 4), r'shape \(4, 4\) cannot'),
        (np.full((4, 4), 200.0), r'values from 200 to 200; bring it to \[0, 1\]'),
        (np.full((4, 4), np.nan), r'values from nan to nan'),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, message: str, model: Any) -> None:
    with pytest.raises(PictureError, match=message):
        model.restore(picture, level=0)


@pytest.mark.parametrize(
    ('choice', 'error', 'message'),
    [
        ({'budget': 0.1}, BudgetError, r'budget is 0\.1, outside what the levels allow: 0\.\d+ .* to 1\.\d+'),
        ({'budget': '0.5'}, OptionError, "budget is '0.5'; allowed: a number from 0 to 2"),
        ({'level': 3}, PatternError, r'level 3 does not exist: .* 0 \(sparsest\) to 2'),
        ({'level': 0, 'budget': 0.5}, OptionError, 'they exclude each other'),
        ({'tile': 0}, OptionError, 'tile is 0; allowed: a positive number of pixels'),
        ({'tile': 'none'}, OptionError, "tile is 'none'; allowed"),
        ({'overlap': -1}, OptionError, 'overlap is -1; allowed: pixels from 0 up, or None'),
        ({'overlap': 8, 'tile': None}, OptionError, 'overlap is 8, but whole pictures are routed'),
        ({'overlap': 8, 'level': 0}, OptionError, 'overlap is 8, but one level runs everywhere'),
        ({'precision': 'fp16'}, OptionError, "precision is 'fp16', but the network runs on cpu; allowed there: fp32"),
    ],
)
def test_wrong_choices_are_refused(choice: dict[str, Any], error: type, message: str, model: Any) -> None:
    with pytest.raises(error, match=message):
        model.restore(scene(96, 96), **choice)


def test_networks_for_videos_are_refused_and_other_channels_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / 'video.pth', {'type': 'BasicVSR', 'num_feat': 8, 'num_block': 1})
    with pytest.raises(CheckpointError, match=r'video\.pth: BasicVSR restores videos, not single pictures'):
        cp_basicsr.load(tmp_path / 'video.pth')
    odd = GRAY_X1 | {'num_in_ch': 2, 'num_out_ch': 2}
    checkpoint(tmp_path / 'odd.pth', odd)
    with pytest.raises(CheckpointError, match=r'odd\.pth: SRVGGNetCompact takes 2 channels'):
        cp_basicsr.load(tmp_path / 'odd.pth')
