from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset

from cp_basicsr.data import demo_set
from cp_basicsr.data.demo_set import make_demo_set
from cp_basicsr.data.errors import DataError
from cp_basicsr.data.matlab_resize import matlab_lr


@pytest.fixture(scope='module')
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('demo')
    make_demo_set(out, 2)
    return out


def test_layout(demo: Path) -> None:
    assert sorted(path.name for path in demo.iterdir()) == [
        'calib_HR', 'calib_LR_X2', 'test_HR', 'test_LR_X2', 'train_HR_sub.lmdb', 'train_LR_X2_sub.lmdb',
    ]  # fmt: skip


@pytest.mark.parametrize('split', ['calib', 'test'])
def test_pairs_are_colour_and_matlab_small(demo: Path, split: str) -> None:
    names = sorted(path.name for path in (demo / f'{split}_HR').iterdir())
    assert len(names) >= 6 and names == sorted(path.name for path in (demo / f'{split}_LR_X2').iterdir())
    for name in names:
        gt, lq = (cv2.imread(str(demo / f'{split}_{part}' / name), cv2.IMREAD_UNCHANGED) for part in ('HR', 'LR_X2'))
        assert gt.ndim == 3 and gt.dtype == np.uint8 and not any(side % 12 for side in gt.shape[:2])
        np.testing.assert_array_equal(lq, matlab_lr(gt, 2))


def test_colours_are_not_swapped(demo: Path) -> None:
    blue, _, red = cv2.imread(str(demo / 'test_HR/coffee.png')).reshape(-1, 3).mean(0)
    assert red > 2 * blue  # a red cup on red wood


def test_splits_do_not_overlap() -> None:
    def overlap(a: demo_set._Region, b: demo_set._Region) -> bool:
        return (
            a.file == b.file
            and a.top < b.top + b.height
            and b.top < a.top + a.height
            and a.left < b.left + b.width
            and b.left < a.left + a.width
        )

    assert not [(a, b) for a in demo_set._TRAIN for b in demo_set._CALIBRATION if overlap(a, b)]
    seen = {region.file for region in demo_set._TRAIN + demo_set._CALIBRATION}
    assert not seen & {region.file for region in demo_set._TEST}


def test_basicsr_trains_on_it(demo: Path) -> None:
    opt = {
        'name': 'demo', 'phase': 'train', 'scale': 2, 'gt_size': 96, 'use_hflip': True, 'use_rot': True,
        'dataroot_gt': str(demo / 'train_HR_sub.lmdb'), 'dataroot_lq': str(demo / 'train_LR_X2_sub.lmdb'),
        'io_backend': {'type': 'lmdb'},
    }  # fmt: skip
    dataset = PairedImageDataset(opt)
    assert len(dataset) > 150
    for index in (0, len(dataset) // 2, len(dataset) - 1):
        sample = dataset[index]
        assert sample['gt'].shape == (3, 96, 96) and sample['lq'].shape == (3, 48, 48)
        small = sample['gt'].reshape(3, 48, 2, 48, 2).mean((2, 4))
        assert (small - sample['lq']).abs().mean() < 0.03


def test_interrupted_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo_set._photograph

    def fail_at_rocket(file: str) -> Path:
        if file == 'rocket.jpg':
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(demo_set, '_photograph', fail_at_rocket)
    with pytest.raises(KeyboardInterrupt):
        make_demo_set(tmp_path, 4)
    done = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(done) == ['calib_HR', 'calib_LR_X4', 'train_HR_sub.lmdb', 'train_LR_X4_sub.lmdb']
    monkeypatch.undo()
    make_demo_set(tmp_path, 4)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in done} == done
    assert len(list((tmp_path / 'test_LR_X4').iterdir())) == len(list((tmp_path / 'test_HR').iterdir())) == 6


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match='scale 5'):
        make_demo_set(tmp_path, 5)
    monkeypatch.setattr(demo_set, '_TRAIN', (demo_set._Region('nobody.png', 0, 0, 12, 12),))
    with pytest.raises(DataError, match=r'nobody\.png: this photograph is missing'):
        make_demo_set(tmp_path, 2)
    assert not list(tmp_path.iterdir())
