import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset

from cp_basicsr.data import lmdb_folder
from cp_basicsr.data.errors import DataError
from cp_basicsr.data.lmdb_folder import make_lmdb, write_lmdb
from cp_basicsr.data.low_resolution import make_lr_folders


def options(tmp_path: Path, ending: str, backend: str) -> dict:
    return {
        'name': 'set',
        'phase': 'val',
        'scale': 2,
        'dataroot_gt': str(tmp_path / f'gt{ending}'),
        'dataroot_lq': str(tmp_path / f'lq{ending}'),
        'io_backend': {'type': backend},
    }


def test_basicsr_reads_the_same_from_lmdb_as_from_disk(tmp_path: Path, write_photographs) -> None:
    gt = write_photographs('gt', a=(24, 36), b=(48, 24), c=(30, 30))
    make_lr_folders(gt, str(tmp_path / 'lq'), [2])
    for folder in ('gt', 'lq'):
        make_lmdb(tmp_path / folder, tmp_path / f'{folder}.lmdb')
    assert (tmp_path / 'gt.lmdb/meta_info.txt').read_text() == (
        'a.png (24,36,3) 1\nb.png (48,24,3) 1\nc.png (30,30,3) 1\n'
    )
    disk = PairedImageDataset(options(tmp_path, '', 'disk'))
    packed = PairedImageDataset(options(tmp_path, '.lmdb', 'lmdb'))
    by_name = {Path(sample['gt_path']).stem: sample for sample in (disk[index] for index in range(3))}
    for sample in (packed[index] for index in range(3)):
        for side in ('lq', 'gt'):
            assert sample[side].equal(by_name[sample['gt_path']][side])


def test_grows_beyond_its_first_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_folder, '_FIRST_MAP_SIZE', 1 << 16)
    monkeypatch.setattr(lmdb_folder, '_BATCH_BYTES', 1 << 17)
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    write_lmdb(tmp_path / 'gt.lmdb', ((f'{n:02d}', img) for n, img in enumerate(noise)))
    write_lmdb(tmp_path / 'lq.lmdb', ((f'{n:02d}', img[:32, :32]) for n, img in enumerate(noise)))
    dataset = PairedImageDataset(options(tmp_path, '.lmdb', 'lmdb'))
    for n, img in enumerate(noise):
        read = (dataset[n]['gt'].numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(read, img[..., ::-1].transpose(2, 0, 1))


KILLED = """
import os, signal, sys
import numpy as np
from cp_basicsr.data.lmdb_folder import write_lmdb

def images():
    for number in range(5):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield f'{number}', np.zeros((8, 8, 3), np.uint8)

write_lmdb(sys.argv[1], images())
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='SIGKILL')
def test_a_killed_run_leaves_no_lmdb_and_the_next_one_cleans_up(tmp_path: Path, run, source: Path) -> None:
    run(sys.executable, '-c', KILLED, tmp_path / 'gt.lmdb', cwd=tmp_path, code=-9, PYTHONPATH=str(source))
    assert not (tmp_path / 'gt.lmdb').exists() and list(tmp_path.iterdir())
    write_lmdb(tmp_path / 'gt.lmdb', [('a', np.zeros((8, 8), np.uint8))])
    assert [path.name for path in tmp_path.iterdir()] == ['gt.lmdb']
    assert (tmp_path / 'gt.lmdb/meta_info.txt').read_text() == 'a.png (8,8,1) 1\n'


def test_a_bad_image_leaves_nothing(tmp_path: Path, write_photographs) -> None:
    folder = write_photographs('gt', a=(24, 24), b=(24, 24))
    (folder / 'b.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'b\.png: not an image .*0 bytes'):
        make_lmdb(folder, tmp_path / 'gt.lmdb')
    assert [path.name for path in tmp_path.iterdir()] == ['gt']


def test_a_second_run_keeps_what_is_complete_and_refuses_what_is_not(tmp_path: Path, write_photographs) -> None:
    folder, output = write_photographs('gt', a=(24, 24), b=(24, 24)), tmp_path / 'gt.lmdb'
    make_lmdb(folder, output)
    before = (output / 'data.mdb').stat().st_mtime_ns
    make_lmdb(folder, output)
    assert (output / 'data.mdb').stat().st_mtime_ns == before
    cv2.imwrite(str(folder / 'c.png'), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r'gt\.lmdb: exists with other images .*such as c\)'):
        make_lmdb(folder, output)
    (folder / 'c.png').unlink()
    (folder / 'a.png').touch()
    with pytest.raises(DataError, match=r'gt\.lmdb: is older than .*a\.png'):
        make_lmdb(folder, output)
    (output / 'meta_info.txt').unlink()
    with pytest.raises(DataError, match=r'gt\.lmdb: exists but holds no meta_info\.txt'):
        make_lmdb(folder, output)


@pytest.mark.parametrize('name', ['a.b', 'ä', 'a b'])
def test_names_that_basicsr_cannot_look_up(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"name '{name}' cannot be an LMDB key"):
        write_lmdb(tmp_path / 'gt.lmdb', [(name, np.zeros((8, 8, 3), np.uint8))])
    assert not list(tmp_path.iterdir())


def test_output_must_end_in_lmdb(tmp_path: Path, write_photographs) -> None:
    with pytest.raises(DataError, match=r'must end in \.lmdb'):
        make_lmdb(write_photographs('gt', a=(24, 24)), tmp_path / 'out')
