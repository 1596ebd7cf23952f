"""JPEG-compressed copies of images, stored as PNG beside the originals: the lq folders of JPEG artefact removal."""

from pathlib import Path

import cv2
import numpy as np

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.files import (
    decode_image,
    is_current,
    list_images,
    map_images,
    open_output_folder,
    read_image,
    write_png,
)

_MAX_SIDE = 65500  # JPEG_MAX_DIMENSION of libjpeg


def jpeg_copy(img: np.ndarray, quality: int, where: str) -> np.ndarray:
    """Compress an image by OpenCV's JPEG encoder and decode it again; colour has its chroma halved, as is usual.

    Args:
        img: uint8, (H, W) or (H, W, 3) in BGR order.
        quality: 1 to 100.
        where: Names the image in the error.

    Returns:
        uint8 image of the same shape.

    Raises:
        DataError: A side is over 65500 pixels.
    """
    if max(img.shape[:2]) > _MAX_SIDE:
        raise DataError(
            f'{where}: {img.shape[1]}x{img.shape[0]} pixels, but JPEG holds at most {_MAX_SIDE} on a side. '
            'Cut this image or remove it.'
        )
    content = cv2.imencode('.jpg', img, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return decode_image(content, where, cv2.IMREAD_ANYCOLOR)


def make_jpeg_folder(
    folder: str | Path,
    output: str | Path,
    quality: int,
    gt_output: str | Path | None = None,
    workers: int | None = None,
) -> None:
    """Write the JPEG-compressed copy of each image of a folder as PNG; complete files of an earlier run are kept.

    Args:
        folder: Folder of images.
        output: Folder to write `NAME.png` to.
        quality: Of OpenCV's JPEG encoder, 1 to 100.
        gt_output: Folder for the originals as PNG. Needed where they are not PNG files already, since BasicSR's
            PairedImageDataset looks for the same name with the same extension on both sides.
        workers: Threads. None: one for each core.

    Raises:
        DataError: An option or an image cannot be used; the message names it.
    """
    if not 1 <= quality <= 100:  # OpenCV would clip it without a word
        raise DataError(f'quality {quality} is outside 1 to 100.')
    sources = list_images(folder)
    output = Path(output)
    gt_folder = Path(gt_output) if gt_output is not None else None
    folders = [path.resolve() for path in (Path(folder), output, gt_folder) if path]
    if len(set(folders)) < len(folders):
        raise DataError(
            f'{folder}: the images, their copies ({output}) and the originals as PNG ({gt_folder}) need a folder each. '
            'Name another output.'
        )
    if not gt_folder:
        for source in sources:
            if source.suffix != '.png':
                raise DataError(
                    f'{source}: its copy {source.stem}.png would have another extension, and PairedImageDataset would '
                    'not pair them. Have the originals written as PNG too (--gt-out), and use these as dataroot_gt.'
                )
    open_output_folder(output, {'jpeg_quality': quality})
    if gt_folder:
        open_output_folder(gt_folder, {'originals': 'png'})

    def make_one(source: Path) -> None:
        path = output / f'{source.stem}.png'
        gt_path = gt_folder / path.name if gt_folder else None
        if all(is_current(made, source) for made in (path, gt_path) if made):
            return
        img = read_image(source)
        if gt_path:
            write_png(gt_path, img)
        write_png(path, jpeg_copy(img, quality, str(source)))

    for _ in map_images(make_one, sources, workers, f'{Path(folder).name}: JPEG {quality}'):
        pass
