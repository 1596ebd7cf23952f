"""What `restore` makes of each kind of picture, against the plain network of a level run in BasicSR's way."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import GRAY_X1, at_level, checkpoint, read, same_pixels, scene, write
from PIL import Image, ImageCms

from cp_basicsr.tools import restore

pytestmark = [pytest.mark.usefixtures('one_thread')]

LOSS = 0.02  # mean, of JPEG at the quality that is written; random networks add much noise
LOSSLESS = ['.png', '.tif', '.tiff', '.webp', '.bmp']
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
Tool = Callable[..., Path]


@pytest.fixture(scope='module')
def net(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A colour network x2; its checkpoint is `net.file`."""
    file = tmp_path_factory.mktemp('model') / 'colour.pth'
    net = checkpoint(file)
    net.file = file
    return net


@pytest.fixture
def tool(net: Any, tmp_path: Path) -> Tool:
    """Restore the pictures of `in`, all at level 1 unless told otherwise; returns the folder of the results."""

    def run(*arguments: str, model: Path = net.file, code: int = 0) -> Path:
        command = [str(tmp_path / 'in'), '-o', str(tmp_path / 'out'), '--model', str(model), *arguments]
        if not {'--level', '--budget'} & set(arguments):
            command += ['--level', '1']
        with pytest.raises(SystemExit) as ended:
            restore.main(command)
        assert ended.value.code == code
        return tmp_path / 'out'

    return run


@pytest.mark.parametrize('suffix', LOSSLESS)
@pytest.mark.parametrize('channels', [1, 3])
def test_8_bit(suffix: str, channels: int, net: Any, tool: Tool, tmp_path: Path) -> None:
    """Gray passes the colour network as three equal channels and comes back as gray."""
    write(tmp_path / f'in/a{suffix}', scene(channels=channels))
    found = read(tool() / f'a{suffix}')
    given = read(tmp_path / f'in/a{suffix}')  # WebP has no gray
    assert given.ndim == (2 if channels == 1 and suffix != '.webp' else 3)
    assert found.dtype == np.uint8
    same_pixels(found, at_level(net, given, 1))


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [1, 3])
def test_16_bit(suffix: str, channels: int, net: Any, tool: Tool, tmp_path: Path) -> None:
    """All 16 bits go in and come out: steps smaller than those of 8 bit are told apart."""
    pixels = scene(channels=channels, deep=True) // 64 + 20000
    write(tmp_path / f'in/a{suffix}', pixels)
    found = read(tool() / f'a{suffix}')
    assert found.dtype == np.uint16
    same_pixels(found, at_level(net, pixels, 1), by=2)
    assert len(np.unique(found)) > 300


@pytest.mark.parametrize('name', ['a.jpg', 'b.JPEG'])
def test_jpeg_keeps_nearly_all(name: str, net: Any, tool: Tool, tmp_path: Path) -> None:
    write(tmp_path / 'in' / name, scene())
    given = np.asarray(Image.open(tmp_path / 'in' / name))
    found = read(tool() / name)
    assert np.abs(found / 255 - at_level(net, given, 1)).mean() < LOSS


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.webp'])
@pytest.mark.parametrize('channels', [2, 4])
def test_alpha_is_restored_as_a_gray_picture(suffix: str, channels: int, net: Any, tool: Tool, tmp_path: Path) -> None:
    pixels = scene(channels=channels)
    write(tmp_path / f'in/a{suffix}', pixels)
    given = read(tmp_path / f'in/a{suffix}')
    found = read(tool() / f'a{suffix}')
    assert found.shape[2] == (4 if suffix == '.webp' else channels)
    same_pixels(found[..., -1], at_level(net, given[..., -1], 1))


@pytest.mark.parametrize('value', [0, 7, 255])
def test_constant_alpha_stays_as_it_is(value: int, net: Any, tool: Tool, tmp_path: Path) -> None:
    pixels = np.dstack([scene(), np.full((40, 56), value, np.uint8)])
    write(tmp_path / 'in/a.png', pixels)
    found = read(tool() / 'a.png')
    assert (found[..., 3] == value).all()
    same_pixels(found[..., :3], at_level(net, pixels[..., :3], 1))


def test_16_bit_alpha(net: Any, tool: Tool, tmp_path: Path) -> None:
    pixels = scene(channels=4, deep=True)
    (tmp_path / 'in').mkdir()
    Image.fromarray(scene()).save(tmp_path / 'in/other.png')
    import cv2

    cv2.imwrite(str(tmp_path / 'in/a.png'), cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))
    found = read(tool() / 'a.png')
    assert found.dtype == np.uint16
    same_pixels(found[..., :3], at_level(net, pixels[..., :3], 1), by=2)


def test_a_network_of_scale_1_leaves_alpha_alone_and_a_gray_one_takes_each_channel(tool: Tool, tmp_path: Path) -> None:
    gray = checkpoint(tmp_path / 'gray.pth', GRAY_X1)
    pixels = scene(channels=4)
    write(tmp_path / 'in/a.png', pixels)
    write(tmp_path / 'in/gray.png', pixels[..., 0])
    out = tool(model=tmp_path / 'gray.pth')
    found = read(out / 'a.png')
    assert np.array_equal(found[..., 3], pixels[..., 3])
    for channel in range(3):
        same_pixels(found[..., channel], at_level(gray, pixels[..., channel], 1))
    same_pixels(read(out / 'gray.png'), at_level(gray, pixels[..., 0], 1))


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tif', '.webp'])
@pytest.mark.parametrize('orientation', [1, 6, 7])
def test_photographs_are_turned_upright(suffix: str, orientation: int, net: Any, tool: Tool, tmp_path: Path) -> None:
    write(tmp_path / f'in/a{suffix}', scene(), orientation)
    found = read(tool() / f'a{suffix}')
    stored = read(tmp_path / f'in/a{suffix}')
    upright = {1: stored, 6: np.rot90(stored, -1), 7: np.rot90(stored, 2).swapaxes(0, 1)}[orientation]
    expected = at_level(net, np.ascontiguousarray(upright), 1)
    assert np.abs(found / 255 - expected).mean() < LOSS
    with Image.open(tmp_path / f'out/a{suffix}') as image:
        assert image.getexif().get(274, 1) == 1, 'nobody turns it again'


@pytest.mark.parametrize(
    ('name', 'deep'), [('a.png', False), ('a.png', True), ('a.jpg', False), ('a.tif', False), ('a.webp', False)]
)
def test_colour_profiles_are_kept(name: str, deep: bool, tool: Tool, tmp_path: Path) -> None:
    from cp_basicsr.tools.restoring_files.writing import encode

    (tmp_path / 'in').mkdir()
    form = Image.registered_extensions()[Path(name).suffix]
    (tmp_path / 'in' / name).write_bytes(encode(scene(deep=deep), form, PROFILE))
    for folder in (tmp_path / 'in', tool()):
        with Image.open(folder / name) as image:
            image.load()
            assert image.info['icc_profile'] == PROFILE


def test_palettes_black_and_white_and_print(net: Any, tool: Tool, tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    image = Image.fromarray(scene())
    image.convert('P').save(tmp_path / 'in/palette.png')
    image.convert('1').save(tmp_path / 'in/bits.png')
    image.convert('CMYK').save(tmp_path / 'in/print.jpg', icc_profile=b'of inks, not of red, green and blue')
    out = tool()
    same_pixels(read(out / 'palette.png'), at_level(net, np.asarray(image.convert('P').convert('RGB')), 1))
    assert read(out / 'bits.png').shape == (80, 112)
    with Image.open(out / 'print.jpg') as found:
        assert found.mode == 'RGB' and 'icc_profile' not in found.info


@pytest.mark.parametrize('size', [(1, 1), (1, 57), (57, 1), (2, 3), (5, 5)])
def test_any_size(size: tuple[int, int], net: Any, tool: Tool, tmp_path: Path) -> None:
    pixels = scene(*size)
    write(tmp_path / 'in/a.png', pixels)
    same_pixels(read(tool() / 'a.png'), at_level(net, pixels, 1))
    assert read(tool('--budget', '0.6', '--overwrite', '--map') / 'a.png').shape == (2 * size[0], 2 * size[1], 3)
    assert read(tmp_path / 'out/a_levels.png').shape[0] == 2 * size[0] + 24


@pytest.mark.parametrize('form', ['png', 'tif', 'jpg', 'webp', 'bmp'])
def test_another_format(form: str, net: Any, tool: Tool, tmp_path: Path) -> None:
    """16 bit where the format has it, else rounded to 8."""
    pixels = scene(deep=True)
    write(tmp_path / 'in/a.tiff', pixels)
    found = read(tool('--format', form) / f'a.{form}')
    assert found.dtype == (np.uint16 if form in ('png', 'tif') else np.uint8)
    assert np.abs(found / np.iinfo(found.dtype).max - at_level(net, pixels, 1)).mean() < LOSS


def test_what_a_format_cannot_hold_is_refused_with_a_remedy(tool: Tool, tmp_path: Path, log: list[str]) -> None:
    write(tmp_path / 'in/a.png', scene(channels=4))
    assert not (tool('--format', 'jpg', code=1) / 'a.jpg').exists()
    assert 'a.png: JPEG holds no alpha; add --format png' in log[-1]


def test_an_animation_or_several_pages_are_refused(tool: Tool, tmp_path: Path, log: list[str]) -> None:
    (tmp_path / 'in').mkdir()
    frames = [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    frames[0].save(tmp_path / 'in/a.webp', save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / 'in/b.tif', save_all=True, append_images=frames[1:])
    tool(code=1)
    assert log[-1].count('holds 2 pictures; only single ones are restored') == 2


def test_telephones_second_pictures_are_left_out(net: Any, tool: Tool, tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    file, frames = io.BytesIO(), [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    frames[0].save(file, 'MPO', save_all=True, append_images=frames[1:], quality=95)
    (tmp_path / 'in/a.jpg').write_bytes(file.getvalue())
    found = read(tool() / 'a.jpg')
    assert np.abs(found / 255 - at_level(net, scene(), 1)).mean() < 0.03


def test_16_bit_tiffs_mean_what_their_tags_say(net: Any, tool: Tool, tmp_path: Path) -> None:
    """Negatives are turned, colours that were multiplied by alpha divided again."""
    (tmp_path / 'in').mkdir()
    gray, pixels = scene(channels=1, deep=True), scene(channels=4, deep=True)
    tifffile.imwrite(tmp_path / 'in/negative.tif', 65535 - gray, photometric='miniswhite')
    pixels[..., 3] = np.maximum(pixels[..., 3], 20000)
    multiplied = np.rint(pixels[..., :3] * (pixels[..., 3:] / 65535))
    both = np.dstack([multiplied, pixels[..., 3:]]).astype(np.uint16)
    tifffile.imwrite(tmp_path / 'in/alpha.tif', both, photometric='rgb', extrasamples=['assocalpha'])
    folder = tool()
    same_pixels(read(folder / 'negative.tif'), at_level(net, gray, 1), by=2)
    same_pixels(read(folder / 'alpha.tif')[..., :3], at_level(net, pixels[..., :3], 1), by=8)


def test_16_bit_tiffs_of_colours_apart_are_refused(tool: Tool, tmp_path: Path, log: list[str]) -> None:
    (tmp_path / 'in').mkdir()
    apart = np.moveaxis(scene(deep=True), 2, 0)
    tifffile.imwrite(tmp_path / 'in/apart.tif', apart, photometric='rgb', planarconfig='separate')
    tool(code=1)
    assert 'stores each colour by itself; save it with colours together' in ' '.join(log)
