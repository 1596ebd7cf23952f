"""Folders of low-resolution images, equal to MATLAB's, beside the mod-cropped originals."""

from collections.abc import Sequence
from math import lcm
from pathlib import Path

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
from cp_basicsr.data.matlab_resize import matlab_lr


def make_lr_folders(
    hr_folder: str | Path,
    output: str,
    scales: Sequence[int],
    suffix: str = '',
    mod: int | None = None,
    gt_output: str | Path | None = None,
    workers: int | None = None,
) -> None:
    """Write a folder of low-resolution PNG images for each scale; complete files of an earlier run are kept.

    Args:
        hr_folder: Folder of original photographs.
        output: Folder to write to; `{scale}` in it becomes the scale, as in `datasets/Set5/LRbicx{scale}`.
        scales: Integers from 2 to 16.
        suffix: Added to each name before `.png`; `{scale}` becomes the scale (DIV2K: `x{scale}`).
        mod: Originals are first cropped to a multiple of this, itself a multiple of every scale. None: of each scale
            alone, or with `gt_output` of the least common multiple of the scales.
        gt_output: Folder for the cropped originals, as PNG.
        workers: Threads. None: one for each core.

    Raises:
        DataError: An option or an image cannot be used; the message names it.
    """
    if len(set(scales)) > 1 and '{scale}' not in output:
        raise DataError(
            f'output {output!r} holds no {{scale}}, so that the scales {list(scales)} would overwrite each other.'
        )
    common = lcm(*scales)
    if mod is None and gt_output is not None:
        mod = common
    if mod is not None and (mod < 1 or mod % common):
        raise DataError(
            f'mod {mod} is not a multiple of every scale in {list(scales)}: use {common} or a multiple of it.'
        )
    sources = list_images(hr_folder)

    gt_folder = Path(gt_output) if gt_output is not None else None
    if gt_folder:
        open_output_folder(gt_folder, {'mod': mod})
    lr_folders = {}
    for scale in scales:
        lr_folders[scale] = Path(output.replace('{scale}', str(scale)))
        open_output_folder(lr_folders[scale], {'scale': scale, 'suffix': suffix, 'mod': mod or scale})

    def make_one(source: Path) -> None:
        gt_path = gt_folder / f'{source.stem}.png' if gt_folder else None
        lr_paths = {
            scale: folder / f'{source.stem}{suffix.replace("{scale}", str(scale))}.png'
            for scale, folder in lr_folders.items()
        }
        if all(is_current(path, source) for path in (*lr_paths.values(), gt_path) if path):
            return
        img = read_image(source)
        if gt_path:
            write_png(gt_path, crop_to_multiple(img, mod, str(source)))
        for scale, path in lr_paths.items():
            write_png(path, matlab_lr(crop_to_multiple(img, mod or scale, str(source)), scale))

    for _ in map_images(make_one, sources, workers, f'{Path(hr_folder).name}: low resolution'):
        pass
