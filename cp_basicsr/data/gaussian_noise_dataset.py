"""Clean photographs, and the same with Gaussian noise, for training and testing denoisers."""

import hashlib
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data.data_util import paths_from_folder
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import FileClient, img2tensor
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from cp_basicsr.data.checks import check_folder, check_lmdb, check_meta_info, check_pair
from cp_basicsr.data.diagnosis import read_bytes
from cp_basicsr.data.errors import DataError
from cp_basicsr.data.files import decode_image
from cp_basicsr.options import OptionError, check_choice, check_keys, check_number, read_block

_OWN_KEYS = {'dataroot_gt', 'io_backend', 'meta_info_file', 'sigma', 'color', 'seed', 'mean', 'std'}
_TRAINING_KEYS = {'gt_size', 'use_hflip', 'use_rot'}
# read or added by BasicSR itself: options.py, data/__init__.py and train.py
_BASICSR_KEYS = {
    'name', 'type', 'phase', 'scale', 'manual_seed', 'use_shuffle', 'num_worker_per_gpu', 'batch_size_per_gpu',
    'dataset_enlarge_ratio', 'prefetch_mode', 'num_prefetch_queue', 'pin_memory', 'persistent_workers',
}  # fmt: skip
_FLAGS = {'rgb': cv2.IMREAD_COLOR, 'gray': cv2.IMREAD_GRAYSCALE}


@DATASET_REGISTRY.register()
class GaussianNoiseDataset(Dataset):
    """Images with white Gaussian noise as `lq`, and without it as `gt`.

    The noise is neither clipped nor rounded, as in DnCNN (arXiv 1608.03981) and the papers that compare with it: `lq`
    is a float image whose values may leave [0, 1]. It is added to the 8-bit image divided by 255.

    In training each image gets a new sigma and new noise from torch's generator, which DataLoader seeds anew for each
    worker and epoch. In testing both follow from `seed` and the image's name alone (PCG64 seeded by SHA-256), whatever
    the order, the number of images, the run, or whether they lie on disk or in an LMDB.

    Options:
        dataroot_gt (str): Folder or LMDB of clean images.
        io_backend (dict): `type: disk` or `type: lmdb`, as in BasicSR.
        meta_info_file (str): Optional, disk only: lists the images to use, one in each line, below `dataroot_gt`.
        sigma (float | list): Standard deviation in 8-bit units (0 to 255), or `[low, high]`, then drawn uniformly for
            each image.
        color (str): `rgb` (default, 3 channels) or `gray` (1 channel, OpenCV's gray reading of a colour image).
        seed (int): Seed of the test images' noise. Default: 0.
        gt_size (int), use_hflip (bool), use_rot (bool): Training patches, as in BasicSR; for training only. An image
            smaller than `gt_size` is an error, as in PairedImageDataset.
        mean, std (list): Normalise both images, as in BasicSR.

    Args:
        opt: These options, and those that BasicSR reads or adds itself.

    Raises:
        OptionError: A key is unknown or missing, or has a value that is not allowed.
        DataError: The folder, LMDB or list of images cannot be used.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.name = str(opt.get('name', 'without name'))
        self.where = f'dataset {self.name}'
        _check_options(opt, self.where)
        self.sigma = _sigma_range(opt['sigma'], f'{self.where}: sigma')
        self.color = opt.get('color', 'rgb')
        self.seed = opt.get('seed', 0)
        self.root = opt['dataroot_gt']
        self.io_backend = dict(opt['io_backend'])
        self.file_client: FileClient | None = None
        if self.io_backend['type'] == 'lmdb':
            self.io_backend.update(db_paths=[self.root], client_keys=['gt'])
        self.paths = self._list_paths()

    def _list_paths(self) -> list[str]:
        where = f'{self.where}: dataroot_gt'
        if self.io_backend['type'] == 'lmdb':
            paths = check_lmdb(where, self.root)
        else:
            check_folder(where, self.root)
            listing = self.opt.get('meta_info_file')
            if listing:
                check_meta_info(self.name, listing)
                lines = Path(listing).read_text().splitlines()
                paths = [str(Path(self.root, line.split(' ')[0])) for line in lines if line.strip()]
            else:
                paths = paths_from_folder(self.root)
        if not paths:
            raise DataError(f'{where}: {self.root} holds no image.')
        return sorted(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Returns:
            `lq` and `gt`: float32, (C, H, W), RGB or gray, gt in [0, 1]. `sigma`: float32 scalar, in 8-bit units.
            `lq_path` and `gt_path`: str, both the clean image's path or LMDB key.

        Raises:
            DataError: The image cannot be read, or is smaller than a training patch.
        """
        path = self.paths[index]
        img = self._read(path)
        if self.opt['phase'] == 'train':
            gt_size = self.opt['gt_size']
            check_pair(self.name, path, img.shape[:2], path, img.shape[:2], 1, gt_size)
            img, _ = paired_random_crop(img, img, gt_size, 1, path)
            img = augment(img, self.opt['use_hflip'], self.opt['use_rot'])
        gt = img2tensor(img.astype(np.float32) / 255.0)
        sigma, noise = self._draw(path, gt.shape)
        lq = gt + noise * (sigma / 255)
        if self.opt.get('mean') is not None:
            gt, lq = (normalize(tensor, self.opt['mean'], self.opt['std']) for tensor in (gt, lq))
        return {'lq': lq, 'gt': gt, 'sigma': sigma, 'lq_path': path, 'gt_path': path}

    def _read(self, path: str) -> np.ndarray:
        if self.file_client is None:
            arguments = dict(self.io_backend)
            self.file_client = FileClient(arguments.pop('type'), **arguments)
        where = f'{self.where}: dataroot_gt'
        content = read_bytes(self.file_client, path, 'gt', where, self.root)
        img = decode_image(content, f'{where}: {path}', _FLAGS[self.color])
        return img[..., None] if img.ndim == 2 else img

    def _draw(self, path: str, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self.sigma
        if self.opt['phase'] == 'train':
            return low + (high - low) * torch.rand(()), torch.randn(shape)
        # the name without folder and extension is the same on disk and in an LMDB
        name = (
            path
            if self.io_backend['type'] == 'lmdb'
            else PurePath(path).relative_to(self.root).with_suffix('').as_posix()
        )
        digest = hashlib.sha256(f'{self.seed}/{name}'.encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], 'little')))
        sigma = torch.tensor(generator.uniform(low, high), dtype=torch.float32)
        return sigma, torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def _check_options(opt: dict[str, Any], where: str) -> None:
    # filename_tmpl names lq files, of which there are none: BasicSR's default is let through
    allowed = _OWN_KEYS | _TRAINING_KEYS | _BASICSR_KEYS
    check_keys({key: value for key, value in opt.items() if (key, value) != ('filename_tmpl', '{}')}, allowed, where)
    required = {'dataroot_gt', 'io_backend', 'sigma', 'phase'} | (
        _TRAINING_KEYS if opt.get('phase') == 'train' else set()
    )
    missing = sorted(required - set(opt))
    if missing:
        raise OptionError(f'{where}: missing {", ".join(missing)}.')
    if (opt.get('mean') is None) != (opt.get('std') is None):
        raise OptionError(f'{where}: mean and std must be given together.')
    backend = read_block(opt['io_backend'], f'{where}: io_backend', ': {type: disk} or {type: lmdb}')
    check_choice(backend.get('type'), ('disk', 'lmdb'), f'{where}: io_backend type')
    check_choice(opt.get('color', 'rgb'), _FLAGS, f'{where}: color')
    check_choice(opt.get('scale', 1), (1,), f'{where}: scale (at the top level of the option file)')


def _sigma_range(value: Any, where: str) -> tuple[float, float]:
    bounds = value if isinstance(value, (list, tuple)) else (value, value)
    if len(bounds) != 2:
        raise OptionError(f'{where} is {value!r}; allowed: one number, or [low, high].')
    low, high = (check_number(bound, where, 0, 255) for bound in bounds)
    if low > high:
        raise OptionError(f'{where} is {value!r}; the first number must not be above the second.')
    return low, high
