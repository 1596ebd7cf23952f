from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.low_resolution import make_lr_folders
from cp_basicsr.data.subimages import extract_subimages, window_starts


@given(extra=st.integers(0, 300), crop=st.integers(1, 60), step=st.integers(1, 60))
def test_windows_reach_both_edges_and_skip_nothing_they_could_cover(extra: int, crop: int, step: int) -> None:
    starts = window_starts(crop + extra, crop, step)
    assert starts[0] == 0 and starts[-1] + crop == crop + extra
    assert all(0 < later - earlier <= step for earlier, later in zip(starts, starts[1:], strict=False))


def test_threshold_drops_a_narrow_remainder() -> None:
    assert window_starts(105, 48, 24, 0) == [0, 24, 48, 57]
    assert window_starts(105, 48, 24, 9) == [0, 24, 48]


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_sub_images_of_both_folders_show_the_same_places(tmp_path: Path, write_photographs, scale: int) -> None:
    """Sizes that no scale divides: the window at the edge must not slip."""
    hr = write_photographs('HR', **{'0001': (109, 131)})
    make_lr_folders(hr, f'{tmp_path}/X{{scale}}', [scale], suffix='x{scale}')
    sizes = {'crop_size': 48, 'step': 24}
    extract_subimages(hr, tmp_path / 'HR_sub', **sizes)
    extract_subimages(tmp_path / f'X{scale}', tmp_path / 'LR_sub', **sizes, scale=scale)
    names = sorted(path.name for path in (tmp_path / 'HR_sub').glob('0*'))
    assert names == sorted(path.name for path in (tmp_path / 'LR_sub').glob('0*'))
    assert len(names) == 4 * 4 and names[0] == '0001_s001.png'
    small = [
        cv2.resize(cv2.imread(str(tmp_path / 'HR_sub' / name)), None, fx=1 / scale, fy=1 / scale).astype(float)
        for name in names
    ]
    for number, name in enumerate(names):
        lq = cv2.imread(str(tmp_path / 'LR_sub' / name))
        assert lq.shape == (48 // scale, 48 // scale, 3)
        assert np.argmin([np.abs(lq - other).mean() for other in small]) == number


def test_runs_again_and_refuses_other_sizes(tmp_path: Path, write_photographs) -> None:
    hr = write_photographs('hr', a=(60, 60), b=(36, 60))
    with pytest.raises(DataError, match=r'b\.png: 60x36 pixels .* smaller than a window of 48'):
        extract_subimages(hr, tmp_path / 'sub', 48, 24, workers=1)
    (hr / 'b.png').unlink()
    extract_subimages(hr, tmp_path / 'sub', 48, 24)
    assert len(list((tmp_path / 'sub').glob('a_s*.png'))) == 4
    with pytest.raises(DataError, match="made earlier with .*'step': 24"):
        extract_subimages(hr, tmp_path / 'sub', 48, 12)
    with pytest.raises(DataError, match='crop_size 50 must be a positive multiple of the scale 4'):
        extract_subimages(hr, tmp_path / 'other', 50, 24, scale=4)
