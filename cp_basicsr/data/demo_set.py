"""A small x2, x3 or x4 super-resolution set cut from the photographs inside scikit-image's installed package.

Nothing is downloaded. Test photographs serve for nothing else; calibration takes other regions of photographs than
training does. Every region is a multiple of 12 pixels, so that one set of originals serves x2, x3 and x4.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.files import staged_folder, write_png
from cp_basicsr.data.lmdb_folder import write_lmdb
from cp_basicsr.data.matlab_resize import matlab_lr
from cp_basicsr.data.subimages import cut_windows

_WINDOW, _STEP = 144, 72  # high-resolution pixels, multiples of 12


class _Region(NamedTuple):
    file: str
    top: int
    left: int
    height: int
    width: int

    @property
    def name(self) -> str:
        return self.file.partition('.')[0]


_TRAIN = (
    _Region('astronaut.png', 0, 0, 504, 336),
    _Region('motorcycle_left.png', 0, 0, 492, 432),
    _Region('ihc.png', 0, 0, 504, 336),
    _Region('hubble_deep_field.jpg', 0, 0, 432, 432),
    _Region('brick.png', 0, 0, 504, 336),
    _Region('grass.png', 0, 0, 504, 336),
    _Region('moon.png', 0, 0, 504, 336),
    _Region('coins.png', 0, 0, 300, 384),
    _Region('page.png', 0, 0, 180, 384),
)
_CALIBRATION = (
    _Region('astronaut.png', 0, 348, 504, 156),
    _Region('motorcycle_left.png', 0, 480, 492, 252),
    _Region('ihc.png', 0, 348, 252, 156),
    _Region('hubble_deep_field.jpg', 444, 444, 180, 180),
    _Region('brick.png', 0, 348, 252, 156),
    _Region('grass.png', 0, 348, 252, 156),
    _Region('moon.png', 0, 348, 504, 156),
    _Region('cell.png', 0, 0, 408, 252),
)
_TEST = (
    _Region('chelsea.png', 0, 0, 300, 444),
    _Region('coffee.png', 0, 0, 396, 600),
    _Region('rocket.jpg', 24, 60, 384, 528),
    _Region('camera.png', 24, 84, 384, 384),
    _Region('retina.jpg', 504, 120, 384, 384),
    _Region('gravel.png', 0, 0, 252, 252),
)


def make_demo_set(out: Path, scale: int = 2) -> None:
    """Make the demo set below `out`; parts that an earlier run completed are kept.

    Writes 8-bit RGB PNG: `train_HR_sub.lmdb` and `train_LR_X2_sub.lmdb` (sub-images of 144 HR pixels), and the folders
    `calib_HR`, `calib_LR_X2`, `test_HR`, `test_LR_X2` (the same file names in both), with X3 or X4 for other scales.

    Args:
        out: Folder to write to.
        scale: 2, 3 or 4.

    Raises:
        DataError: The scale is another one, or scikit-image or one of its photographs is missing.
    """
    if scale not in (2, 3, 4):
        raise DataError(f'scale {scale!r}: the demo set is made for 2, 3 or 4.')
    out = Path(out)
    _write_lmdb_once(out / 'train_HR_sub.lmdb', _TRAIN, 1)
    _write_lmdb_once(out / f'train_LR_X{scale}_sub.lmdb', _TRAIN, scale)
    for split, regions in (('calib', _CALIBRATION), ('test', _TEST)):
        _write_folder_once(out / f'{split}_HR', regions, 1)
        _write_folder_once(out / f'{split}_LR_X{scale}', regions, scale)


def _write_lmdb_once(output: Path, regions: tuple[_Region, ...], scale: int) -> None:
    if not output.exists():
        write_lmdb(output, _sub_images(regions, scale))


def _sub_images(regions: tuple[_Region, ...], scale: int) -> Iterator[tuple[str, np.ndarray]]:
    for region in regions:
        windows = cut_windows(_load(region, scale), _WINDOW // scale, _STEP // scale)
        for number, window in enumerate(windows, 1):
            yield f'{region.name}_s{number:03d}', window


def _write_folder_once(output: Path, regions: tuple[_Region, ...], scale: int) -> None:
    if output.exists():
        return
    with staged_folder(output) as partial:
        for region in regions:
            write_png(partial / f'{region.name}.png', _load(region, scale))


def _load(region: _Region, scale: int) -> np.ndarray:
    """A region as uint8 (H, W, 3) in BGR order, shrunk by `scale` when that is over 1."""
    with Image.open(_photograph(region.file)) as photograph:
        rgb = np.asarray(photograph.convert('RGB'))
    img = rgb[region.top : region.top + region.height, region.left : region.left + region.width, ::-1]
    return matlab_lr(img, scale) if scale > 1 else np.ascontiguousarray(img)


def _photograph(file: str) -> Path:
    # not skimage.data.NAME(): those fetch from the network what they do not find
    package = find_spec('skimage')
    if package is None or not package.submodule_search_locations:
        raise DataError("The demo set needs scikit-image's photographs: pip install scikit-image")
    path = Path(package.submodule_search_locations[0], 'data', file)
    if not path.is_file():
        raise DataError(
            f'{path}: this photograph is missing from scikit-image. Install it again: pip install scikit-image'
        )
    return path
