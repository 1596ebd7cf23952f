import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from torch._utils import ExceptionWrapper

from cp_basicsr.data.diagnosis import install_data_diagnosis
from cp_basicsr.data.errors import DataError
from cp_basicsr.data.lmdb_folder import make_lmdb
from cp_basicsr.data.low_resolution import make_lr_folders


@pytest.fixture(autouse=True)
def installed() -> None:
    install_data_diagnosis()


@pytest.fixture
def pairs(tmp_path: Path, write_photographs) -> Path:
    gt = write_photographs('gt', a=(48, 64), b=(64, 48))
    make_lr_folders(gt, str(tmp_path / 'lq'), [2])
    return tmp_path


@pytest.fixture
def lmdbs(pairs: Path) -> Path:
    for side in ('gt', 'lq'):
        make_lmdb(pairs / side, pairs / f'{side}.lmdb')
    return pairs


@pytest.fixture
def build(pairs: Path) -> Callable[..., PairedImageDataset]:
    def make(backend: str = 'disk', phase: str = 'val', **changes: object) -> PairedImageDataset:
        ending = '.lmdb' if backend == 'lmdb' else ''
        opt = {
            'name': 'Pairs',
            'type': 'PairedImageDataset',
            'phase': phase,
            'scale': 2,
            'dataroot_gt': str(pairs / f'gt{ending}'),
            'dataroot_lq': str(pairs / f'lq{ending}'),
            'io_backend': {'type': backend},
            'gt_size': 32,
            'use_hflip': False,
            'use_rot': False,
        } | changes
        return PairedImageDataset({key: value for key, value in opt.items() if value != 'absent'})

    return make


def write(path: Path, height: int, width: int) -> None:
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize('phase', ['train', 'val'])
@pytest.mark.parametrize('backend', ['disk', 'lmdb'])
def test_good_data_passes_untouched(lmdbs: Path, build, backend: str, phase: str) -> None:
    install_data_diagnosis()  # twice is once
    dataset = build(backend, phase)
    sample = dataset[0]
    original = PairedImageDataset.__getitem__.__wrapped__
    assert not hasattr(original, '__wrapped__')
    if phase == 'train':
        assert sample['gt'].shape == (3, 32, 32) and sample['lq'].shape == (3, 16, 16)
    else:
        plain = original(dataset, 0)
        assert sample['gt'].equal(plain['gt']) and sample['lq'].equal(plain['lq'])


@pytest.mark.parametrize('side', ['lq', 'gt'])
def test_missing_folders(build, lmdbs: Path, side: str) -> None:
    with pytest.raises(DataError, match=f'dataset Pairs: dataroot_{side}: folder nowhere does not exist') as info:
        build(**{f'dataroot_{side}': 'nowhere'})
    assert isinstance(info.value.__cause__, FileNotFoundError)
    with pytest.raises(DataError, match=f'dataroot_{side}: folder nowhere.lmdb does not exist'):
        build('lmdb', **{f'dataroot_{side}': 'nowhere.lmdb'})
    with pytest.raises(DataError, match=r'does not end in \.lmdb'):
        build('lmdb', **{f'dataroot_{side}': str(lmdbs / side)})


def test_lmdb_without_its_files(lmdbs: Path, build) -> None:
    (lmdbs / 'lq.lmdb/data.mdb').rename(lmdbs / 'aside')
    with pytest.raises(DataError, match=r'dataroot_lq: .*data\.mdb is missing'):
        build('lmdb')
    (lmdbs / 'aside').rename(lmdbs / 'lq.lmdb/data.mdb')
    (lmdbs / 'gt.lmdb/meta_info.txt').unlink()
    with pytest.raises(DataError, match=r'dataroot_gt: .*meta_info\.txt is missing.*make_lmdb'):
        build('lmdb')


@pytest.mark.parametrize('kept', [0, 100, 200, 4096, 5000, 0.5, -4096])
def test_truncated_lmdb(lmdbs: Path, build, kept: float) -> None:
    """Without the check, reading the lost half of the file kills the process with SIGBUS."""
    path = lmdbs / 'gt.lmdb/data.mdb'
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else kept])
    problem = 'truncated' if kept in (200, 4096, 5000, 0.5, -4096) else 'not an LMDB database'
    with pytest.raises(DataError, match=rf'dataroot_gt: .*data\.mdb .*{problem}'):
        build('lmdb')


def test_lmdb_that_is_something_else(lmdbs: Path, build) -> None:
    (lmdbs / 'lq.lmdb/data.mdb').write_bytes(b'version https://git-lfs.github.com/spec/v1\n' * 400)
    with pytest.raises(DataError, match=r'data\.mdb \(17200 bytes\) is not an LMDB database'):
        build('lmdb')


def test_lmdb_written_in_many_transactions_is_not_called_truncated(lmdbs: Path, build) -> None:
    """The header on the second page may be the newer one."""
    for extra in range(5):
        with lmdb.open(str(lmdbs / 'gt.lmdb'), map_size=1 << 26) as env, env.begin(write=True) as transaction:
            transaction.put(f'extra{extra}'.encode(), bytes(50000))
        assert len(build('lmdb')) == 2
    path = lmdbs / 'gt.lmdb/data.mdb'
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(DataError, match='truncated'):
        build('lmdb')


def test_lmdb_with_fewer_images_than_it_lists(lmdbs: Path, build) -> None:
    for side in ('lq', 'gt'):
        with (lmdbs / f'{side}.lmdb/meta_info.txt').open('a') as meta:
            meta.write('c.png (8,8,3) 1\n')
    with pytest.raises(DataError, match=r'data\.mdb holds 2 images, but meta_info\.txt beside it lists 3'):
        build('lmdb')


def test_key_missing_in_lmdb(lmdbs: Path, build) -> None:
    for side in ('lq', 'gt'):
        meta = lmdbs / f'{side}.lmdb/meta_info.txt'
        meta.write_text(meta.read_text().replace('b.png', 'z.png'))
    with pytest.raises(DataError, match=r"dataroot_lq: LMDB .*lq\.lmdb holds no image under the key 'z'"):
        build('lmdb')[1]


def test_lmdbs_of_other_images(lmdbs: Path, build) -> None:
    meta = lmdbs / 'lq.lmdb/meta_info.txt'
    meta.write_text(meta.read_text().splitlines()[0] + '\n')
    with pytest.raises(DataError, match=r'dataset Pairs: .*lq\.lmdb lacks b that .*gt\.lmdb holds'):
        build('lmdb')


def test_folders_that_do_not_match(pairs: Path, build) -> None:
    write(pairs / 'gt/c.png', 8, 8)
    with pytest.raises(DataError, match=r'dataroot_lq .*lq lacks c\.png \(2 files in lq, 3 in gt'):
        build()
    (pairs / 'gt/c.png').unlink()
    write(pairs / 'lq/d.png', 8, 8)
    with pytest.raises(DataError, match=r'lq holds d\.png without a partner .*gt \(3 files in lq, 2 in gt'):
        build()
    (pairs / 'lq/d.png').unlink()
    with pytest.raises(DataError, match=r"lacks ax2\.png, bx2\.png .*filename_tmpl '\{\}x2'"):
        build(filename_tmpl='{}x2')


def test_lists_and_empty_folders(pairs: Path, build, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='meta_info_file none.txt does not exist'):
        build(meta_info_file='none.txt')
    (pairs / 'list.txt').write_text('gone.png\n')
    with pytest.raises(DataError, match=r'gone\.png cannot be read'):
        build(meta_info_file=str(pairs / 'list.txt'))[0]
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='empty holds no image'):
        build(dataroot_gt=str(tmp_path / 'empty'), dataroot_lq=str(tmp_path / 'empty'))


@pytest.mark.parametrize('phase', ['train', 'val'])
@pytest.mark.parametrize('side', ['lq', 'gt'])
@pytest.mark.parametrize('content', [b'', b'<html>'])
def test_a_file_that_is_no_image(pairs: Path, build, phase: str, side: str, content: bytes) -> None:
    (pairs / side / 'b.png').write_bytes(content)
    dataset = build(phase=phase)
    index = next(n for n, path in enumerate(dataset.paths) if path['gt_path'].endswith('b.png'))
    with pytest.raises(DataError, match=rf'dataset Pairs: dataroot_{side}: .*b\.png: not an image') as info:
        dataset[index]
    assert info.value.__cause__ is not None


def test_the_message_passes_from_a_loader_worker_to_the_main_process(pairs: Path, build) -> None:
    for name in ('a', 'b'):
        (pairs / f'lq/{name}.png').write_bytes(b'<html>')
    with pytest.raises(DataError) as info:
        build(phase='train')[0]
    sent = pickle.loads(
        pickle.dumps(ExceptionWrapper((info.type, info.value, info.tb), where='in worker'))
    )  # what DataLoader does
    with pytest.raises(DataError, match=r'(?s)in worker.*lq/[ab]\.png: not an image'):
        sent.reraise()


@pytest.mark.parametrize(
    'phase, gt, lq, message',
    [
        ('train', (48, 64), (48, 64), r'gt .*a\.png is 64x48 and lq .*a\.png is 64x48 .* gt must be 128x96'),
        ('train', (49, 64), (24, 32), 'gt must be 64x48'),
        ('train', (24, 48), (12, 24), 'is 48x24 pixels, smaller than gt_size 32'),
        ('val', (48, 64), (48, 64), 'gt must be 128x96'),
        ('val', (47, 64), (24, 32), 'is 64x47 and lq .* is 32x24 .* gt must be 64x48'),
        ('val', (50, 64), (24, 32), 'gt must be 64x48'),
        ('val', (48, 96), (24, 32), 'gt must be 64x48'),
    ],
)
def test_sizes_that_do_not_belong_together(pairs: Path, build, phase: str, gt, lq, message: str) -> None:
    write(pairs / 'gt/a.png', *gt)
    write(pairs / 'lq/a.png', *lq)
    (pairs / 'gt/b.png').unlink()
    (pairs / 'lq/b.png').unlink()
    with pytest.raises(DataError, match=f'dataset Pairs: .*{message}'):
        build(phase=phase)[0]


def test_basicsr_may_cut_the_last_pixels_in_testing(pairs: Path, build) -> None:
    for height, width in ((49, 65), (48, 65), (49, 64)):
        write(pairs / 'gt/a.png', height, width)
        dataset = build()
        index = next(n for n, path in enumerate(dataset.paths) if path['gt_path'].endswith('a.png'))
        assert dataset[index]['gt'].shape == (3, 48, 64)


def test_options(build) -> None:
    with pytest.raises(DataError, match='gt_size 33 is not a multiple of scale 2. Use 32 or 34'):
        build(phase='train', gt_size=33)
    with pytest.raises(DataError, match="dataset Pairs: option 'dataroot_lq' is missing from its block"):
        build(dataroot_lq='absent')
    with pytest.raises(DataError, match="option 'scale' is missing at the top level"):
        build(scale='absent')[0]
    with pytest.raises(DataError, match="option 'use_rot' is missing from its block"):
        build(phase='train', use_rot='absent')[0]


def test_other_failures_are_left_as_they_are(build) -> None:
    with pytest.raises(ValueError, match='Backend tape is not supported') as info:
        build('tape')[0]
    assert not isinstance(info.value, DataError)
