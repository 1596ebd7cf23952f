"""Large photographs cut into overlapping sub-images, so that training reads less for each patch, as BasicSR does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.files import (
    crop_to_multiple,
    is_current,
    list_images,
    map_images,
    open_output_folder,
    read_image,
    write_png,
)


def window_starts(length: int, crop: int, step: int, threshold: int = 0) -> list[int]:
    """First pixels of the windows along one side, BasicSR's rule: one more window ends at the edge if over `threshold`
    pixels would be left out. `length` is at least `crop`."""
    starts = list(range(0, length - crop + 1, step))
    if length - (starts[-1] + crop) > threshold:
        starts.append(length - crop)
    return starts


def cut_windows(img: np.ndarray, crop: int, step: int, threshold: int = 0) -> Iterator[np.ndarray]:
    """Yield the square windows of an image (H, W[, C]), row by row, as views."""
    for top in window_starts(img.shape[0], crop, step, threshold):
        for left in window_starts(img.shape[1], crop, step, threshold):
            yield img[top : top + crop, left : left + crop]


def extract_subimages(
    folder: str | Path,
    output: str | Path,
    crop_size: int = 480,
    step: int = 240,
    threshold: int = 0,
    scale: int = 1,
    mod: int = 12,
    workers: int | None = None,
) -> None:
    """Cut each image of a folder into sub-images `NAME_s001.png`, ...; complete files of an earlier run are kept.

    All sizes are given in high-resolution pixels, for a low-resolution folder too, so that the n-th sub-image of both
    shows the same place. Images are first cropped to a multiple of `mod` for the same reason.

    Args:
        folder: Folder of images.
        output: Folder to write to.
        crop_size, step, threshold: Window side, distance between windows, remainder at the edge that is dropped.
        scale: Scale of a low-resolution folder (its windows are `crop_size / scale`, and `x{scale}` at the end of a
            name is dropped); 1 for the originals.
        mod: Multiple of every scale in use.
        workers: Threads. None: one for each core.

    Raises:
        DataError: A size is no multiple of the scale, or an image cannot be read or is smaller than a window.
    """
    sizes = {'crop_size': crop_size, 'step': step, 'threshold': threshold, 'mod': mod}
    for name, size in sizes.items():
        if size % scale or size < 0 or (size == 0 and name != 'threshold'):
            raise DataError(f'{name} {size} must be a positive multiple of the scale {scale}.')
    output = Path(output)
    sources = list_images(folder)
    open_output_folder(output, {**sizes, 'scale': scale})

    def cut_one(source: Path) -> None:
        img = crop_to_multiple(read_image(source), mod // scale, str(source))
        if min(img.shape[:2]) < crop_size // scale:
            raise DataError(
                f'{source}: {img.shape[1]}x{img.shape[0]} pixels after cropping to a multiple of {mod // scale} is '
                f'smaller than a window of {crop_size // scale}. Use a smaller crop size, or remove this image and its '
                'partners.'
            )
        name = source.stem.removesuffix(f'x{scale}') if scale > 1 else source.stem
        for number, window in enumerate(cut_windows(img, crop_size // scale, step // scale, threshold // scale), 1):
            path = output / f'{name}_s{number:03d}.png'
            if not is_current(path, source):
                write_png(path, window)

    for _ in map_images(cut_one, sources, workers, f'{Path(folder).name}: sub-images'):
        pass
