"""Clear errors for bad data from BasicSR's own PairedImageDataset.

Given a missing LMDB, a file that is no image or a pair of unequal size, BasicSR fails with errors such as
`'NoneType' object has no attribute 'astype'`, is killed by a bus error, or cuts gt and reports a wrong PSNR.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils import FileClient

from cp_basicsr.data.checks import (
    check_folder,
    check_gt_size,
    check_lmdb,
    check_meta_info,
    check_pair,
    check_same_keys,
    check_same_names,
)
from cp_basicsr.data.errors import DataError
from cp_basicsr.data.files import decode_image


def install_data_diagnosis() -> None:
    """Make PairedImageDataset report bad data as a DataError that names the file or key; a second call does nothing.

    What BasicSR reads and returns stays as it is. A failure is looked into when it has happened; beyond that, LMDB
    headers are read when a dataset is built, and each test pair's sizes are compared the first time it is read.
    """
    if hasattr(PairedImageDataset.__init__, '__wrapped__'):
        return
    PairedImageDataset.__init__ = _diagnose_init(PairedImageDataset.__init__)
    PairedImageDataset.__getitem__ = _diagnose_getitem(PairedImageDataset.__getitem__)


def _diagnose_init(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def __init__(self, opt: dict[str, Any]) -> None:
        try:
            original(self, opt)
        except Exception as error:
            _look_for_cause(error, _check_option, opt, error)
            _look_for_cause(error, _check_roots, opt)
            raise
        if _is_lmdb(opt):
            _check_roots(opt)
        if not self.paths:
            raise DataError(f'dataset {_name(opt)}: dataroot_gt {opt["dataroot_gt"]} holds no image.')
        if opt.get('phase') == 'train' and 'gt_size' in opt and 'scale' in opt:
            check_gt_size(_name(opt), opt['gt_size'], opt['scale'])
        self._compared = set()

    return __init__


def _diagnose_getitem(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(original)
    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            sample = original(self, index)
        except Exception as error:
            _look_for_cause(error, _check_option, self.opt, error)
            _look_for_cause(error, _check_sample, self, index)
            raise
        if self.opt['phase'] != 'train' and index not in self._compared:
            _check_sample(self, index)
            self._compared.add(index)
        return sample

    return __getitem__


def _look_for_cause(error: Exception, check: Callable[..., None], *arguments: object) -> None:
    try:
        check(*arguments)
    except DataError as cause:
        raise cause from error


def _name(opt: dict[str, Any]) -> str:
    return str(opt.get('name', 'without name'))


def _is_lmdb(opt: dict[str, Any]) -> bool:
    # the dataset takes `type` out of io_backend when it opens the LMDB
    return opt['io_backend'].get('type') == 'lmdb' or 'db_paths' in opt['io_backend']


def _check_option(opt: dict[str, Any], error: Exception) -> None:
    """Raise a DataError if an error came of an option that is missing."""
    if isinstance(error, KeyError) and error.args and error.args[0] not in opt:
        place = 'at the top level of the option file' if error.args[0] == 'scale' else 'from its block'
        raise DataError(f'dataset {_name(opt)}: option {error.args[0]!r} is missing {place}.')


def _check_roots(opt: dict[str, Any]) -> None:
    """Raise a DataError if the folders that the options name cannot be used."""
    name = _name(opt)
    lq_root, gt_root = opt['dataroot_lq'], opt['dataroot_gt']
    where_lq, where_gt = f'dataset {name}: dataroot_lq', f'dataset {name}: dataroot_gt'
    if _is_lmdb(opt):
        check_same_keys(name, lq_root, check_lmdb(where_lq, lq_root), gt_root, check_lmdb(where_gt, gt_root))
        return
    check_folder(where_lq, lq_root)
    check_folder(where_gt, gt_root)
    if opt.get('meta_info_file'):
        check_meta_info(name, opt['meta_info_file'])
    else:
        check_same_names(name, lq_root, gt_root, opt.get('filename_tmpl', '{}'))


def _check_sample(dataset: PairedImageDataset, index: int) -> None:
    """Raise a DataError if one pair cannot be read or its sizes do not belong together."""
    if dataset.file_client is None:  # it could not be opened, which its own error explains
        return
    opt, paths = dataset.opt, dataset.paths[index]
    sizes = {}
    for side in ('lq', 'gt'):
        where = f'dataset {_name(opt)}: dataroot_{side}'
        path = paths[f'{side}_path']
        content = read_bytes(dataset.file_client, path, side, where, opt[f'dataroot_{side}'])
        sizes[side] = decode_image(content, f'{where}: {path}').shape[:2]
    patch = opt['gt_size'] if opt['phase'] == 'train' else None
    check_pair(_name(opt), paths['lq_path'], sizes['lq'], paths['gt_path'], sizes['gt'], opt['scale'], patch)


def read_bytes(client: FileClient, path: str, client_key: str, where: str, root: str) -> bytes:
    """Read one image file's bytes through a BasicSR file client.

    Raises:
        DataError: The file, or the key in the LMDB `root`, is missing; `where` names the dataset and option.
    """
    try:
        content = client.get(path, client_key)
    except OSError as error:
        raise DataError(f'{where}: {path} cannot be read ({error.strerror}).') from error
    if content is None:
        raise DataError(
            f'{where}: LMDB {root} holds no image under the key {path!r}, though its meta_info.txt lists it: '
            'make it again with datasets/make_lmdb.py.'
        )
    return content
