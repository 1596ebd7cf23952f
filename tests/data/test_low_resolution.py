from pathlib import Path

import cv2
import numpy as np
import pytest

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.low_resolution import make_lr_folders
from cp_basicsr.data.matlab_resize import matlab_lr


def test_folders_names_and_pixels_of_a_test_set(tmp_path: Path, write_photographs) -> None:
    hr = write_photographs('original', a=(50, 61), b=(36, 40))
    make_lr_folders(hr, f'{tmp_path}/LRbicx{{scale}}', [2, 3, 4], gt_output=tmp_path / 'GTmod12')
    original = cv2.imread(str(hr / 'a.png'))
    gt = cv2.imread(str(tmp_path / 'GTmod12/a.png'))
    np.testing.assert_array_equal(gt, original[:48, :60])
    for scale in (2, 3, 4):
        assert {path.name for path in (tmp_path / f'LRbicx{scale}').glob('*')} >= {'a.png', 'b.png'}
        lr = cv2.imread(str(tmp_path / f'LRbicx{scale}/a.png'))
        np.testing.assert_array_equal(lr, matlab_lr(gt, scale))


def test_suffix_and_crop_to_each_scale(tmp_path: Path, write_photographs) -> None:
    hr = write_photographs('HR', **{'0001': (50, 61)})
    make_lr_folders(hr, f'{tmp_path}/X{{scale}}', [2, 4], suffix='x{scale}')
    assert cv2.imread(str(tmp_path / 'X2/0001x2.png')).shape == (25, 30, 3)
    assert cv2.imread(str(tmp_path / 'X4/0001x4.png')).shape == (12, 15, 3)


def test_gray_stays_gray(tmp_path: Path) -> None:
    (tmp_path / 'hr').mkdir()
    cv2.imwrite(str(tmp_path / 'hr/g.png'), np.arange(144, dtype=np.uint8).reshape(12, 12))
    make_lr_folders(tmp_path / 'hr', str(tmp_path / 'lr'), [2])
    assert cv2.imread(str(tmp_path / 'lr/g.png'), cv2.IMREAD_UNCHANGED).shape == (6, 6)


def test_a_bad_image_stops_it_and_the_next_run_makes_only_the_rest(tmp_path: Path, write_photographs) -> None:
    hr = write_photographs('hr', a=(24, 24), b=(24, 24), c=(24, 24))
    good = (hr / 'b.png').read_bytes()
    (hr / 'b.png').write_bytes(b'<html>not found</html>')
    with pytest.raises(DataError, match=r'hr/b\.png: not an image .*<html>'):
        make_lr_folders(hr, str(tmp_path / 'lr'), [2], workers=1)
    assert cv2.imread(str(tmp_path / 'lr/a.png')).shape == (12, 12, 3)
    assert not list((tmp_path / 'lr').glob('*b.png*'))
    first = (tmp_path / 'lr/a.png').stat().st_mtime_ns
    (hr / 'b.png').write_bytes(good)
    make_lr_folders(hr, str(tmp_path / 'lr'), [2], workers=2)
    assert sorted(path.name for path in (tmp_path / 'lr').glob('[a-z]*')) == ['a.png', 'b.png', 'c.png']
    assert (tmp_path / 'lr/a.png').stat().st_mtime_ns == first


def test_refusals(tmp_path: Path, write_photographs) -> None:
    hr = write_photographs('hr', a=(24, 24))
    with pytest.raises(DataError, match=r'holds no \{scale\}'):
        make_lr_folders(hr, str(tmp_path / 'lr'), [2, 3])
    for mod in (8, 0, -12):
        with pytest.raises(DataError, match=f'mod {mod} is not a multiple .* use 12'):
            make_lr_folders(hr, f'{tmp_path}/X{{scale}}', [2, 3, 4], mod=mod)
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(DataError, match=r'file: cannot be made \(File exists\)\. Name another output'):
        make_lr_folders(hr, str(tmp_path / 'file'), [2])
    make_lr_folders(hr, str(tmp_path / 'lr'), [2])
    with pytest.raises(DataError, match="lr: made earlier with .*'scale': 2.*Remove this folder"):
        make_lr_folders(hr, str(tmp_path / 'lr'), [3])
    with pytest.raises(DataError, match='none: no such folder'):
        make_lr_folders(tmp_path / 'none', str(tmp_path / 'lr2'), [2])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='empty: holds no image'):
        make_lr_folders(tmp_path / 'empty', str(tmp_path / 'lr2'), [2])
    (hr / 'a.jpg').write_bytes((hr / 'a.png').read_bytes())
    with pytest.raises(DataError, match=r'a\.jpg and a\.png would both become a\.png'):
        make_lr_folders(hr, str(tmp_path / 'lr2'), [2])
    assert not (tmp_path / 'lr2').exists()
    write_photographs('tiny', t=(2, 24))
    with pytest.raises(DataError, match=r't\.png: 24x2 pixels is too small .* multiple of 3'):
        make_lr_folders(tmp_path / 'tiny', str(tmp_path / 'lr3'), [3])
