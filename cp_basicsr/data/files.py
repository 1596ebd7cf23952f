"""Reading and writing image files so that an interrupted run leaves only complete files, and can be run again."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from cp_basicsr.data.errors import DataError

IMAGE_EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.ppm', '.pgm', '.webp')
_PARAMETERS_FILE = '.parameters.json'  # BasicSR's scandir passes over names that begin with a dot

Item = TypeVar('Item')
Result = TypeVar('Result')


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly below a folder, sorted by name.

    Raises:
        DataError: The folder is missing or holds no image, or two images differ only in their extension.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder (looked for it from {Path.cwd()}).')
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith('.')
    )
    if not paths:
        raise DataError(f'{folder}: holds no image. Looked for {" ".join(IMAGE_EXTENSIONS)} directly in this folder.')
    by_stem: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_stem:
            raise DataError(
                f'{folder}: {by_stem[path.stem].name} and {path.name} would both become {path.stem}.png. Rename one.'
            )
        by_stem[path.stem] = path
    return paths


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as BasicSR's datasets see it: uint8, (H, W) for gray or (H, W, 3) in BGR order, no alpha.

    Raises:
        DataError: The file is missing, or OpenCV cannot decode it.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}).') from error
    # ANYCOLOR, not UNCHANGED: like the datasets' own flag it turns photographs upright and drops alpha
    return decode_image(content, str(path), cv2.IMREAD_ANYCOLOR)


def decode_image(content: bytes, where: str, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decode an image file's bytes to uint8, (H, W) or (H, W, 3) in BGR order; `where` names it in the error.

    Raises:
        DataError: The bytes are not an image that OpenCV can decode.
    """
    img = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    if img is None:
        raise DataError(
            f'{where}: not an image that OpenCV can read ({len(content)} bytes, beginning with {content[:8]!r}). '
            'Replace this file or remove it.'
        )
    return img


def encode_png(img: np.ndarray, compress_level: int) -> bytes:
    """Encode a uint8 image, (H, W) or (H, W, 3) in BGR order, as PNG at zlib level 0 to 9."""
    return cv2.imencode('.png', img, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])[1].tobytes()


def write_png(path: Path, img: np.ndarray, compress_level: int = 3) -> None:
    """Write a PNG as :func:`write_whole` does."""
    write_whole(path, encode_png(img, compress_level))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or absent; see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path, ending: str = '.partial') -> Iterator[Path]:
    """A temporary file beside `path`, of no other process, which takes its place when the block ends without exception.

    Args:
        path: the file to write or replace.
        ending: of the temporary name, where a writer tells the format by it.
    """
    # Short, because a name may be as long as the file system allows.
    partial = path.with_name(f'.{os.getpid()}.{zlib.crc32(path.name.encode()):08x}{ending}')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_current(output: Path, source: Path) -> bool:
    """Whether an output exists and is not older than the file it is made from."""
    return output.is_file() and output.stat().st_mtime >= source.stat().st_mtime


def crop_to_multiple(img: np.ndarray, multiple: int, where: str) -> np.ndarray:
    """Cut the bottom and right of an image (H, W[, C]) so that both sides are multiples of `multiple`.

    Raises:
        DataError: A side is shorter than `multiple`.
    """
    height, width = (side - side % multiple for side in img.shape[:2])
    if not height or not width:
        raise DataError(
            f'{where}: {img.shape[1]}x{img.shape[0]} pixels is too small to crop to a multiple of {multiple}.'
        )
    return img[:height, :width]


def open_output_folder(folder: Path, parameters: dict[str, object]) -> None:
    """Make an output folder, or check that an earlier run filled it with the same parameters.

    The parameters that decide the content are kept in a hidden file there, so that a second run never mixes two kinds.

    Raises:
        DataError: The folder was filled with other parameters, or cannot be made.
    """
    record = folder / _PARAMETERS_FILE
    if record.is_file():
        earlier = json.loads(record.read_text())
        if earlier != parameters:
            raise DataError(
                f'{folder}: made earlier with {earlier}, now asked for {parameters}. '
                'Remove this folder, or name another output.'
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'{folder}: cannot be made ({error.strerror}). Name another output.') from error
    write_whole(record, json.dumps(parameters).encode())


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, renamed to `final` when the block ends and removed when it raises.

    What a killed run left behind is removed by the next run.
    """
    partial = final.with_name(f'.{final.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def map_images(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None, label: str
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, from `workers` threads (None: one for each core), with progress.

    Threads are enough: OpenCV and NumPy release the interpreter lock. Only a few results wait in memory at a time.
    """
    workers = workers or os.cpu_count() or 1
    ahead = 4 * workers
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(items), desc=label, unit='image') as progress:
        waiting = [pool.submit(function, item) for item in items[:ahead]]
        try:
            for position in range(len(items)):
                result = waiting.pop(0).result()
                if position + ahead < len(items):
                    waiting.append(pool.submit(function, items[position + ahead]))
                progress.update()
                yield result
        finally:
            for future in waiting:
                future.cancel()
