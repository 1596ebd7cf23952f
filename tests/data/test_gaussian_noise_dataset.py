import hashlib
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.gaussian_noise_dataset import GaussianNoiseDataset
from cp_basicsr.data.lmdb_folder import make_lmdb
from cp_basicsr.options import OptionError


@pytest.fixture
def folder(write_photographs) -> Path:
    return write_photographs('clean', a=(40, 60), b=(64, 48), c=(50, 50))


@pytest.fixture
def options(folder: Path) -> Callable[..., dict]:
    def make(**changes: object) -> dict:
        opt = {
            'name': 'Noisy',
            'type': 'GaussianNoiseDataset',
            'phase': 'val',
            'dataroot_gt': str(folder),
            'io_backend': {'type': 'disk'},
            'sigma': 25,
        } | changes
        if opt['phase'] == 'train':
            opt = {'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'use_shuffle': True} | opt
        return {key: value for key, value in opt.items() if value != 'absent'}

    return make


def by_name(dataset: GaussianNoiseDataset, order: list[int]) -> dict[str, torch.Tensor]:
    return {Path(dataset[index]['gt_path']).stem: dataset[index]['lq'] for index in order}


def test_a_test_sample(options, folder: Path) -> None:
    dataset = build_dataset(options())  # BasicSR finds it by its name
    sample = dataset[0]
    clean = cv2.imread(str(folder / 'a.png'))[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255
    assert sample['gt'].dtype == sample['lq'].dtype == torch.float32
    np.testing.assert_array_equal(sample['gt'].numpy(), clean)
    assert sample['lq_path'] == sample['gt_path'] == str(folder / 'a.png') and sample['sigma'] == 25
    noise = (sample['lq'] - sample['gt']) * 255
    assert noise.std().item() == pytest.approx(25, rel=0.03) and abs(noise.mean().item()) < 1
    assert sample['lq'].max() > 1 and sample['lq'].min() < 0  # not clipped
    assert ((sample['lq'] * 255).round() != sample['lq'] * 255).any()  # not rounded


def test_the_noise_itself_is_pinned(tmp_path: Path, options) -> None:
    """The noise of an image belongs to every published figure: it must not change from one release to the next."""
    (tmp_path / 'flat').mkdir()
    cv2.imwrite(str(tmp_path / 'flat/a.png'), np.zeros((2, 2, 3), np.uint8))
    sample = build_dataset(options(dataroot_gt=str(tmp_path / 'flat'), sigma=255))[0]
    expected = [0.22423452, 0.92524117, 0.5519038, 0.96975017]
    np.testing.assert_allclose(sample['lq'].flatten()[:4].numpy(), expected, rtol=1e-6)


PROGRAM = """
import hashlib, sys
import basicsr.data
from cp_basicsr.data.gaussian_noise_dataset import GaussianNoiseDataset
dataset = GaussianNoiseDataset({'name': 'n', 'phase': 'val', 'dataroot_gt': sys.argv[1], 'io_backend': {'type': 'disk'},
                                'sigma': [0, 55]})
for index in (2, 0, 1):
    print(hashlib.sha256(dataset[index]['lq'].numpy().tobytes()).hexdigest())
"""


def test_test_noise_is_the_same_in_every_process_order_and_place(
    tmp_path: Path, options, folder: Path, run, source: Path
) -> None:
    dataset = GaussianNoiseDataset(options(sigma=[0, 55]))
    first = by_name(dataset, [0, 1, 2])
    assert not first['a'][:, :10, :10].equal(first['c'][:, :10, :10])
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    again = by_name(dataset, [2, 0, 1])
    make_lmdb(folder, tmp_path / 'clean.lmdb')
    packed = by_name(
        GaussianNoiseDataset(
            options(sigma=[0, 55], dataroot_gt=str(tmp_path / 'clean.lmdb'), io_backend={'type': 'lmdb'})
        ),
        [1, 0, 2],
    )
    (tmp_path / 'moved').mkdir()
    shutil.copy(folder / 'b.png', tmp_path / 'moved')
    alone = by_name(GaussianNoiseDataset(options(sigma=[0, 55], dataroot_gt=f'{tmp_path}/moved/')), [0])
    for name in 'abc':
        assert first[name].equal(again[name]) and first[name].equal(packed[name])
    assert alone['b'].equal(first['b'])
    expected = [hashlib.sha256(first[name].numpy().tobytes()).hexdigest() for name in 'cab']
    output = run(sys.executable, '-c', PROGRAM, folder, cwd=tmp_path, PYTHONHASHSEED='7', PYTHONPATH=str(source))
    assert output.stdout.split() == expected


def test_seed_changes_the_noise_and_sigma_only_scales_it(options) -> None:
    samples = [GaussianNoiseDataset(options(**change))[0] for change in ({}, {'seed': 1}, {'sigma': 50})]
    noises = [(sample['lq'] - sample['gt']) / sample['sigma'] for sample in samples]
    assert not torch.allclose(noises[0], noises[1], atol=1e-3)
    torch.testing.assert_close(noises[0], noises[2], atol=1e-6, rtol=0)


def test_a_range_of_sigma_in_testing_and_training(options) -> None:
    test = GaussianNoiseDataset(options(sigma=[10, 50]))
    sigmas = [test[index]['sigma'].item() for index in range(3)]
    assert len(set(sigmas)) == 3 and all(10 <= sigma <= 50 for sigma in sigmas)
    train = GaussianNoiseDataset(options(phase='train', sigma=[10, 50], gt_size=40))
    torch.manual_seed(0)
    samples = [train[index % 3] for index in range(60)]
    drawn = torch.stack([sample['sigma'] for sample in samples])
    assert 10 <= drawn.min() < 15 and 45 < drawn.max() <= 50
    for sample in samples:
        measured = (sample['lq'] - sample['gt']).std() * 255
        torch.testing.assert_close(measured, sample['sigma'], rtol=0.06, atol=0)


@pytest.mark.parametrize('color, channels', [('rgb', 3), ('gray', 1)])
def test_training_patches(options, folder: Path, color: str, channels: int) -> None:
    dataset = GaussianNoiseDataset(options(phase='train', color=color, sigma=0))
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    whole = cv2.imread(str(folder / 'c.png'), flag).reshape(50, 50, channels)[..., ::-1]
    patches = set()
    for seed in range(12):
        random.seed(seed)
        sample = dataset[2]
        assert sample['lq'].shape == sample['gt'].shape == (channels, 32, 32) and sample['lq'].equal(sample['gt'])
        patch = (sample['gt'].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
        turned = [np.rot90(way, turns) for way in (patch, patch[:, ::-1]) for turns in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(whole, (32, 32), (0, 1)).transpose(0, 1, 3, 4, 2)
        found = [k for k, way in enumerate(turned) if (windows == way).all((2, 3, 4)).any()]
        assert len(found) == 1
        patches.add(found[0])
    assert len(patches) >= 4  # flips and turns happen


def test_gray_is_one_channel_in_testing_too(options, folder: Path) -> None:
    sample = GaussianNoiseDataset(options(color='gray'))[0]
    gray = cv2.imread(str(folder / 'a.png'), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    assert sample['lq'].shape == (1, 40, 60)
    np.testing.assert_array_equal(sample['gt'][0].numpy(), gray)


def test_batches_through_basicsr_loader_differ_between_epochs(options) -> None:
    opt = options(phase='train', num_worker_per_gpu=1, batch_size_per_gpu=3, dataset_enlarge_ratio=1)
    loader = build_dataloader(build_dataset(opt), opt, num_gpu=0, seed=0)
    noises = [batch['lq'] - batch['gt'] for _ in range(2) for batch in loader]
    assert noises[0].shape == (3, 3, 32, 32) and not noises[0].equal(noises[1])


def test_list_of_images_and_normalisation(tmp_path: Path, options) -> None:
    (tmp_path / 'list.txt').write_text('c.png (50,50,3)\na.png (40,60,3)\n')
    plain = GaussianNoiseDataset(options(meta_info_file=str(tmp_path / 'list.txt')))
    assert [Path(path).name for path in plain.paths] == ['a.png', 'c.png']
    shifted = GaussianNoiseDataset(options(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], filename_tmpl='{}'))
    for side in ('lq', 'gt'):
        torch.testing.assert_close(shifted[0][side], plain[0][side] * 2 - 1, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'sigm': 25}, r"Unknown key 'sigm' in dataset Noisy. Did you mean 'sigma'\? Allowed: .*seed"),
        ({'filename_tmpl': '{}x2'}, "Unknown key 'filename_tmpl'"),
        ({'sigma': 'absent'}, 'dataset Noisy: missing sigma'),
        ({'phase': 'train', 'gt_size': 'absent'}, 'dataset Noisy: missing gt_size'),
        ({'sigma': -1}, 'sigma is -1; allowed: a number from 0 to 255'),
        ({'sigma': True}, 'sigma is True'),
        ({'sigma': [50, 10]}, r'sigma is \[50, 10\]; the first number'),
        ({'sigma': [1, 2, 3]}, r'sigma is \[1, 2, 3\]; allowed: one number, or'),
        ({'color': 'grey'}, "color is 'grey'; Did you mean 'gray'"),
        ({'io_backend': {'type': 'lmbd'}}, "io_backend type is 'lmbd'; Did you mean 'lmdb'"),
        ({'scale': 2}, 'scale .* is 2; allowed: 1'),
        ({'mean': [0.5]}, 'mean and std must be given together'),
    ],
)
def test_option_errors(options, changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GaussianNoiseDataset(options(**changes))


def test_data_errors(tmp_path: Path, options, folder: Path) -> None:
    with pytest.raises(DataError, match='dataset Noisy: dataroot_gt: folder nowhere does not exist'):
        GaussianNoiseDataset(options(dataroot_gt='nowhere'))
    with pytest.raises(DataError, match='does not end in .lmdb, but io_backend type is lmdb'):
        GaussianNoiseDataset(options(io_backend={'type': 'lmdb'}))
    with pytest.raises(DataError, match='meta_info_file none.txt does not exist'):
        GaussianNoiseDataset(options(meta_info_file='none.txt'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='empty holds no image'):
        GaussianNoiseDataset(options(dataroot_gt=str(tmp_path / 'empty')))
    with pytest.raises(DataError, match=r'gt .*a\.png is 60x40 pixels, smaller than gt_size 48'):
        GaussianNoiseDataset(options(phase='train', gt_size=48))[0]
    (folder / 'a.png').write_text('text')
    with pytest.raises(DataError, match=r'dataroot_gt: .*a\.png: not an image .*text'):
        GaussianNoiseDataset(options())[0]
    (tmp_path / 'list.txt').write_text('gone.png\n')
    with pytest.raises(DataError, match=r'gone\.png cannot be read'):
        GaussianNoiseDataset(options(meta_info_file=str(tmp_path / 'list.txt')))[0]
