import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils import bgr2ycbcr

from cp_basicsr.data.errors import DataError
from cp_basicsr.data.jpeg_copies import jpeg_copy, make_jpeg_folder


@pytest.mark.parametrize('quality', [1, 40, 100])
def test_pixels_are_opencvs_own(tmp_path: Path, write_photographs, quality: int) -> None:
    originals = write_photographs('original', a=(50, 61), b=(8, 17))
    make_jpeg_folder(originals, tmp_path / 'JPEG', quality)
    for name in ('a.png', 'b.png'):
        original = cv2.imread(str(originals / name))
        cv2.imwrite(str(tmp_path / 'one.jpg'), original, [cv2.IMWRITE_JPEG_QUALITY, quality])
        copy = cv2.imread(str(tmp_path / 'JPEG' / name))
        np.testing.assert_array_equal(copy, cv2.imread(str(tmp_path / 'one.jpg')))
        assert (copy != original).any()


def test_gray_stays_gray(tmp_path: Path) -> None:
    (tmp_path / 'hr').mkdir()
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / 'hr/g.png'), gray)
    make_jpeg_folder(tmp_path / 'hr', tmp_path / 'lq', 10)
    content = cv2.imencode('.jpg', gray, [cv2.IMWRITE_JPEG_QUALITY, 10])[1]
    copy = cv2.imread(str(tmp_path / 'lq/g.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(copy, cv2.imdecode(content, cv2.IMREAD_GRAYSCALE))


def test_paired_image_dataset_takes_the_luma_of_both(tmp_path: Path, write_photographs) -> None:
    """Originals that are no PNG: the folder of `gt_output` is the one that pairs."""
    original = cv2.imread(str(write_photographs('png', a=(24, 32)) / 'a.png'))
    (tmp_path / 'bmp').mkdir()
    cv2.imwrite(str(tmp_path / 'bmp/a.bmp'), original)
    make_jpeg_folder(tmp_path / 'bmp', tmp_path / 'JPEG40', 40, gt_output=tmp_path / 'original')
    folders = {'dataroot_gt': str(tmp_path / 'original'), 'dataroot_lq': str(tmp_path / 'JPEG40')}
    sample = PairedImageDataset(
        {'name': 'J', 'phase': 'val', 'scale': 1, 'color': 'y', 'io_backend': {'type': 'disk'}, **folders}
    )[0]
    for side, img in (('gt', original), ('lq', jpeg_copy(original, 40, 'a'))):
        luma = bgr2ycbcr(img.astype(np.float32) / 255, y_only=True)
        np.testing.assert_allclose(sample[side].numpy(), luma[None], atol=1e-6)


def test_a_bad_image_stops_it_and_the_next_run_makes_only_the_rest(tmp_path: Path, write_photographs) -> None:
    originals = write_photographs('original', a=(24, 24), b=(24, 24), c=(24, 24))
    good = (originals / 'b.png').read_bytes()
    (originals / 'b.png').write_bytes(b'<html>not found</html>')
    with pytest.raises(DataError, match=r'original/b\.png: not an image .*<html>'):
        make_jpeg_folder(originals, tmp_path / 'lq', 40, workers=1)
    assert (tmp_path / 'lq/a.png').is_file() and not list((tmp_path / 'lq').glob('*b.png*'))
    first = (tmp_path / 'lq/a.png').stat().st_mtime_ns
    (originals / 'b.png').write_bytes(good)
    make_jpeg_folder(originals, tmp_path / 'lq', 40, workers=2)
    assert sorted(path.name for path in (tmp_path / 'lq').glob('[a-z]*')) == ['a.png', 'b.png', 'c.png']
    assert (tmp_path / 'lq/a.png').stat().st_mtime_ns == first


def test_a_newer_original_and_a_missing_png_of_it_are_made_again(tmp_path: Path, write_photographs) -> None:
    originals = write_photographs('original', a=(24, 24))
    make_jpeg_folder(originals, tmp_path / 'lq', 40, tmp_path / 'gt')
    (tmp_path / 'gt/a.png').unlink()
    make_jpeg_folder(originals, tmp_path / 'lq', 40, tmp_path / 'gt')
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'gt/a.png')), cv2.imread(str(originals / 'a.png')))

    cv2.imwrite(str(originals / 'a.png'), np.full((24, 24, 3), 128, np.uint8))  # JPEG keeps its middle gray exactly
    os.utime(tmp_path / 'lq/a.png', (0, 0))
    make_jpeg_folder(originals, tmp_path / 'lq', 40, tmp_path / 'gt')
    for folder in ('lq', 'gt'):
        assert (cv2.imread(str(tmp_path / folder / 'a.png')) == 128).all()


def test_refusals(tmp_path: Path, write_photographs) -> None:
    originals = write_photographs('original', a=(24, 24))
    before = (originals / 'a.png').read_bytes()
    for quality in (0, 101, -5):
        with pytest.raises(DataError, match=f'quality {quality} is outside 1 to 100'):
            make_jpeg_folder(originals, tmp_path / 'lq', quality)
    for output, gt_output in ((originals, None), (tmp_path / 'lq', originals), (tmp_path / 'lq', tmp_path / 'lq')):
        with pytest.raises(DataError, match='original: .* need a folder each'):
            make_jpeg_folder(originals, output, 40, gt_output)
    cv2.imwrite(str(originals / 'b.bmp'), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r'b\.bmp: its copy b\.png .* not pair them\. .*--gt-out'):
        make_jpeg_folder(originals, tmp_path / 'lq', 40)
    assert not (tmp_path / 'lq').exists()
    assert (originals / 'a.png').read_bytes() == before
    (originals / 'b.bmp').unlink()
    make_jpeg_folder(originals, tmp_path / 'lq', 40)
    with pytest.raises(DataError, match='lq: made earlier with .*40.*, now asked for .*30.*Remove this folder'):
        make_jpeg_folder(originals, tmp_path / 'lq', 30)
    cv2.imwrite(str(originals / 'long.png'), np.zeros((1, 65501), np.uint8))
    with pytest.raises(DataError, match=r'long\.png: 65501x1 pixels, but JPEG holds at most 65500'):
        make_jpeg_folder(originals, tmp_path / 'lq', 40)


def test_command_from_another_working_directory(tmp_path: Path, write_photographs, run, source: Path) -> None:
    write_photographs('datasets/My/original', a=(24, 24))

    def make_jpeg(*arguments: str, code: int = 0) -> str:
        script = source / 'datasets/make_jpeg.py'
        return run(sys.executable, script, *arguments, cwd=tmp_path, code=code, PYTHONPATH=str(source)).stderr

    folders = ('datasets/My/original', 'datasets/My/JPEG40')
    assert 'Traceback' not in (refusal := make_jpeg(*folders, '--quality', '0', code=1))
    assert 'make_jpeg.py: quality 0 is outside 1 to 100' in refusal
    assert 'make_jpeg.py: none: no such folder' in make_jpeg('none', 'out', '--quality', '40', code=1)
    for _ in range(2):  # the second time finds everything done
        make_jpeg(*folders, '--quality', '40', '--gt-out', 'datasets/My/png')
    for folder in ('JPEG40', 'png'):
        assert (tmp_path / f'datasets/My/{folder}/a.png').is_file()
