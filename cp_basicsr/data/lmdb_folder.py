"""LMDB folders in BasicSR's layout: PNG bytes under the image's name, and `meta_info.txt`.

`basicsr.utils.lmdb_util` writes straight into the final folder, ends the program where that exists, and guesses the
database's size from its first image; here the folder appears complete or not at all, and the database grows.
"""

from collections.abc import Iterable
from pathlib import Path

import lmdb
import numpy as np

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.files import encode_png, list_images, map_images, read_image, staged_folder

_FIRST_MAP_SIZE = 64 << 20
_BATCH_BYTES = 32 << 20


def make_lmdb(folder: str | Path, output: str | Path, compress_level: int = 1, workers: int | None = None) -> None:
    """Put the images of a folder into an LMDB folder, unless a run before has done so.

    Args:
        folder: Folder of images; each image's key is its name without extension.
        output: The LMDB folder, ending in `.lmdb`.
        compress_level: PNG compression, 0 to 9; 1 as in BasicSR, since training decodes each image again and again.
        workers: Threads. None: one for each core.

    Raises:
        DataError: An image or a name cannot be used, or `output` exists and holds other images, or older ones.
    """
    output = Path(output)
    sources = list_images(folder)
    _check_keys([source.stem for source in sources], str(folder))
    if output.exists():
        _check_finished(output, sources)
        return

    def encode_one(source: Path) -> tuple[str, tuple[int, ...], bytes]:
        img = read_image(source)
        return source.stem, img.shape, encode_png(img, compress_level)

    _write(output, map_images(encode_one, sources, workers, output.name), compress_level)


def write_lmdb(output: str | Path, images: Iterable[tuple[str, np.ndarray]], compress_level: int = 1) -> None:
    """Write images from memory into a new LMDB folder, in the order of their keys or not.

    Args:
        output: The LMDB folder, ending in `.lmdb`; it must not exist.
        images: Keys, and uint8 images (H, W) or (H, W, 3) in BGR order.
        compress_level: PNG compression, 0 to 9.

    Raises:
        DataError: A key or the folder's name is not one that BasicSR can use.
    """
    encoded = ((key, img.shape, encode_png(img, compress_level)) for key, img in images)
    _write(Path(output), encoded, compress_level)


def _write(output: Path, encoded: Iterable[tuple[str, tuple[int, ...], bytes]], compress_level: int) -> None:
    if output.suffix != '.lmdb':
        raise DataError(f'{output}: the name of an LMDB folder must end in .lmdb; BasicSR refuses others.')
    with staged_folder(output) as partial:
        meta = []
        batch: list[tuple[bytes, bytes]] = []
        batch_bytes = 0
        with lmdb.open(str(partial), map_size=_FIRST_MAP_SIZE) as env:
            for key, shape, content in encoded:
                _check_keys([key], str(output))
                channels = shape[2] if len(shape) == 3 else 1
                meta.append(f'{key}.png ({shape[0]},{shape[1]},{channels}) {compress_level}\n')
                batch.append((key.encode('ascii'), content))
                batch_bytes += len(content)
                if batch_bytes > _BATCH_BYTES:
                    _put(env, batch)
                    batch, batch_bytes = [], 0
            _put(env, batch)
        (partial / 'meta_info.txt').write_text(''.join(meta))


def _put(env: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    while True:
        try:
            with env.begin(write=True) as transaction:
                for key, content in batch:
                    transaction.put(key, content)
            return
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()['map_size'])


def _check_keys(keys: list[str], where: str) -> None:
    for key in keys:
        if '.' in key or not key.isascii() or any(character.isspace() for character in key):
            raise DataError(
                f'{where}: the name {key!r} cannot be an LMDB key: BasicSR needs ASCII without dots or spaces. '
                'Rename this image (and its partner).'
            )


def _check_finished(output: Path, sources: list[Path]) -> None:
    meta_path = output / 'meta_info.txt'
    if not meta_path.is_file():
        raise DataError(f'{output}: exists but holds no meta_info.txt, so it is not complete. Remove it and run again.')
    held = {line.split('.')[0] for line in meta_path.read_text().splitlines()}
    wanted = {source.stem for source in sources}
    if held != wanted:
        odd = sorted(held ^ wanted)
        raise DataError(
            f'{output}: exists with other images than {sources[0].parent} ({len(odd)} names differ, such as {odd[0]}). '
            'Remove it and run again, or name another output.'
        )
    newest = max(sources, key=lambda source: source.stat().st_mtime)
    if newest.stat().st_mtime > (output / 'data.mdb').stat().st_mtime:
        raise DataError(f'{output}: is older than {newest}. Remove it and run again.')
