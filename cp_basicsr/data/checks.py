"""What can be wrong with a dataset's folders, LMDBs and image pairs, each reported as a DataError that says what to do.

`where` names the dataset and option in each message, as in `dataset DIV2K: dataroot_gt`.
"""

import struct
from pathlib import Path

from cp_basicsr.data.errors import DataError

# struct MDB_meta of LMDB's data format 1 (liblmdb 0.9, mdb.c), behind a page header of 16 bytes: magic, version,
# address, map size, two databases of (pad, flags, depth, branch, leaf and overflow pages, entries, root), last page,
# transaction. The first database's pad holds the page size. One such page lies at 0, another at the page size; the
# one with the later transaction counts.
_META = struct.Struct('<IIQQ' + 2 * 'IHHQQQQQ' + 'QQ')
_META_OFFSET = 16
_MAGIC = 0xBEEFC0DE
_MAKE_LMDB = 'make it again with datasets/make_lmdb.py'


def check_folder(where: str, folder: str) -> None:
    """Raise a DataError unless `folder` is a folder."""
    path = Path(folder)
    if path.is_dir():
        return
    what = 'is a file, not a folder' if path.exists() else f'does not exist (looked for it from {Path.cwd()})'
    raise DataError(
        f'{where}: folder {folder} {what}. Correct the path, or prepare the set as datasets/README.md shows.'
    )


def check_lmdb(where: str, folder: str) -> list[str]:
    """Check an LMDB folder of BasicSR's layout without opening the database; return the keys of its meta_info.txt.

    A data.mdb shorter than its header says has to be found here: reading its missing pages kills the process with a bus
    error, which no exception handler sees.

    Raises:
        DataError: The folder or a file in it is missing, truncated or not LMDB, or the database holds too few images.
    """
    if not folder.endswith('.lmdb'):
        raise DataError(
            f'{where}: {folder} does not end in .lmdb, but io_backend type is lmdb. '
            'Name an LMDB folder, or set io_backend type to disk.'
        )
    check_folder(where, folder)
    meta_path, data_path = Path(folder, 'meta_info.txt'), Path(folder, 'data.mdb')
    for path in (meta_path, data_path):
        if not path.is_file():
            raise DataError(f'{where}: {path} is missing, so this LMDB is not complete: {_MAKE_LMDB}.')
    keys = [line.split('.')[0] for line in meta_path.read_text().splitlines()]
    size = data_path.stat().st_size
    header = _read_header(data_path)
    if header is None:
        raise DataError(f'{where}: {data_path} ({size} bytes) is not an LMDB database: {_MAKE_LMDB}.')
    needed, entries = header
    if size < needed:
        raise DataError(
            f'{where}: {data_path} is truncated: {size} bytes, but its header asks for {needed}. '
            f'Copy it again, or {_MAKE_LMDB}.'
        )
    if entries < len(keys):
        raise DataError(
            f'{where}: {data_path} holds {entries} images, but meta_info.txt beside it lists {len(keys)}: {_MAKE_LMDB}.'
        )
    return keys


def _read_header(path: Path) -> tuple[int, int] | None:
    """Bytes that the database needs and number of entries; None where the file is not LMDB."""
    newest = None
    with path.open('rb') as file:
        offset = 0
        for _ in range(2):
            file.seek(offset + _META_OFFSET)
            content = file.read(_META.size)
            if len(content) < _META.size:
                return newest and newest[1:]
            fields = _META.unpack(content)
            magic, version, page_size = fields[0], fields[1], fields[4]
            if magic != _MAGIC or version != 1:
                return newest and newest[1:]
            entries, last_page, transaction = fields[18], fields[20], fields[21]
            if newest is None or transaction > newest[0]:
                newest = (transaction, (last_page + 1) * page_size, entries)
            offset = page_size
    return newest[1:]


def check_same_keys(name: str, lq_folder: str, lq_keys: list[str], gt_folder: str, gt_keys: list[str]) -> None:
    """Raise a DataError that names a few images which only one of the two LMDBs holds."""
    for folder, other, missing in (
        (lq_folder, gt_folder, set(gt_keys) - set(lq_keys)),
        (gt_folder, lq_folder, set(lq_keys) - set(gt_keys)),
    ):
        if missing:
            raise DataError(
                f'dataset {name}: {folder} lacks {_some(missing)} that {other} holds. '
                'Both need the same names: make both again from folders that match.'
            )


def check_same_names(name: str, lq_folder: str, gt_folder: str, filename_tmpl: str) -> None:
    """Raise a DataError that names a few files without a partner in the other folder of a pair (disk backend)."""
    lq_names, gt_names = (
        {path.name for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith('.')}
        for folder in (lq_folder, gt_folder)
    )
    wanted = {f'{filename_tmpl.format(Path(gt_name).stem)}{Path(gt_name).suffix}' for gt_name in gt_names}
    counts = f'({len(lq_names)} files in lq, {len(gt_names)} in gt, filename_tmpl {filename_tmpl!r})'
    if wanted - lq_names:
        raise DataError(
            f'dataset {name}: dataroot_lq {lq_folder} lacks {_some(wanted - lq_names)} {counts}. Add what is missing, '
            'remove its partners in dataroot_gt, or correct filename_tmpl.'
        )
    if lq_names - wanted:
        raise DataError(
            f'dataset {name}: dataroot_lq {lq_folder} holds {_some(lq_names - wanted)} without a partner in '
            f'dataroot_gt {gt_folder} {counts}. Remove them, add their partners, or correct filename_tmpl.'
        )


def check_meta_info(name: str, path: str) -> None:
    """Raise a DataError unless the file that lists a dataset's images exists."""
    if not Path(path).is_file():
        raise DataError(
            f'dataset {name}: meta_info_file {path} does not exist (looked for it from {Path.cwd()}). '
            'Correct the path, or leave the option out to use every image of the folder.'
        )


def check_gt_size(name: str, gt_size: int, scale: int) -> None:
    """Raise a DataError unless a training patch has a whole number of lq pixels."""
    if gt_size % scale:
        low = gt_size - gt_size % scale
        raise DataError(
            f'dataset {name}: gt_size {gt_size} is not a multiple of scale {scale}. '
            f'Use {low or scale} or {low + scale}.'
        )


def check_pair(
    name: str,
    lq_path: str,
    lq_size: tuple[int, int],
    gt_path: str,
    gt_size: tuple[int, int],
    scale: int,
    patch: int | None,
) -> None:
    """Check the sizes (height, width) of a pair, for training patches of `patch` gt pixels or, if None, for testing.

    In testing BasicSR cuts gt to `scale` times lq, so there gt may be larger by less than `scale` pixels.

    Raises:
        DataError: The sizes do not belong together, or the image is smaller than the patch.
    """
    surplus = [gt - scale * lq for gt, lq in zip(gt_size, lq_size, strict=True)]
    largest = 0 if patch else scale - 1
    if not all(0 <= extra <= largest for extra in surplus):
        raise DataError(
            f'dataset {name}: gt {gt_path} is {_size(gt_size)} and lq {lq_path} is {_size(lq_size)} pixels (width x '
            f'height), but with scale {scale} gt must be {_size([scale * side for side in lq_size])}. '
            'Make the lq images again from these gt images (datasets/make_lr.py), or correct scale.'
        )
    if patch and min(gt_size) < patch:
        raise DataError(
            f'dataset {name}: gt {gt_path} is {_size(gt_size)} pixels, smaller than gt_size {patch}. '
            'Remove this image (and its lq partner), or use a smaller gt_size.'
        )


def _size(size: tuple[int, int] | list[int]) -> str:
    return f'{size[1]}x{size[0]}'


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ', '.join(first) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
