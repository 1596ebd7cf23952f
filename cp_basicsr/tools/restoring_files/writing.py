"""Restored pixels as the bytes of a picture file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from .stamp import exif_with

# Restoring is wasted on a file that loses it again. Of WebP's two kinds the one without losses, with the least effort:
# a quarter of a second for 6 megapixels and smaller than PNG; with the most effort it is a fifth smaller in 40 seconds.
OPTIONS = {
    'PNG': {'compress_level': 1},
    'JPEG': {'quality': 95, 'subsampling': 0},
    'WEBP': {'lossless': True, 'quality': 0, 'method': 0, 'exact': True},
    'BMP': {},
}
PNG_HEADER = 33  # bytes of signature and IHDR, after which iCCP and eXIf may stand
EXIF_PREFIX = b'Exif\0\0'  # in JPEG files; PNG's eXIf goes without
DEEP = ('PNG', 'TIFF')
WITH_ALPHA = ('PNG', 'TIFF', 'WEBP')
LONGEST = {'WEBP': 16383, 'JPEG': 65535}  # pixels of a side that the formats can hold


class WriteError(ValueError):
    """A format cannot hold a picture; the message says what to do."""


def check_form(shape: Sequence[int], form: str) -> None:
    """Refuse a format that cannot hold pixels of ``shape``, ``[H, W]`` or ``[H, W, C]``.

    Raises:
        WriteError: it holds no alpha, or no picture as large.
    """
    if len(shape) == 3 and shape[2] in (2, 4) and form not in WITH_ALPHA:
        raise WriteError(f'{form} holds no alpha; add --format png')
    longest, side = LONGEST.get(form), max(shape[:2])
    if longest is not None and side > longest:
        raise WriteError(f'{form} holds at most {longest} pixels a side, not {side}; add --format png')


def encode(pixels: np.ndarray, form: str, profile: bytes | None = None, stamp: str | None = None) -> bytes:
    """The bytes of a file.

    Args:
        pixels: uint8 or uint16, ``[H, W]`` or ``[H, W, C]`` as :class:`.reading.PictureFile` has them. Formats without
            16 bit (JPEG, WebP, BMP) get them rounded to 8; gray with alpha becomes RGBA at 16 bit.
        form: 'PNG', 'JPEG', 'TIFF', 'WEBP' or 'BMP'.
        profile: ICC colour profile to put in.
        stamp: text for the Software field. BMP has a place for neither.

    Raises:
        WriteError: as :func:`check_form`.
    """
    check_form(pixels.shape, form)
    if pixels.dtype == np.uint16 and form not in DEEP:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype == np.uint16 and pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    if form == 'TIFF':
        return _tiff(pixels, profile, stamp)
    if pixels.dtype == np.uint16:
        return _deep_png(pixels, profile, stamp)
    file = io.BytesIO()
    known = {} if stamp is None else {'exif': exif_with(stamp)}
    Image.fromarray(pixels).save(file, form, icc_profile=profile, **known, **OPTIONS[form])
    return file.getvalue()


def _tiff(pixels: np.ndarray, profile: bytes | None, stamp: str | None) -> bytes:
    import tifffile

    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        pixels,
        photometric='rgb' if channels > 2 else 'minisblack',
        extrasamples=['unassalpha'] if channels in (2, 4) else None,
        planarconfig='contig' if channels > 1 else None,
        compression='zlib',
        iccprofile=profile,
        software=stamp,
        metadata=None,
    )
    return file.getvalue()


def _deep_png(pixels: np.ndarray, profile: bytes | None, stamp: str | None) -> bytes:
    """OpenCV writes 16-bit colour, but neither colour profile nor EXIF."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    content = cv2.imencode('.png', pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    chunks = b''
    if profile is not None:
        chunks += _png_chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(profile))  # PNG 1.2, section 4.2.2.4
    if stamp is not None:
        chunks += _png_chunk(b'eXIf', exif_with(stamp).removeprefix(EXIF_PREFIX))
    return content[:PNG_HEADER] + chunks + content[PNG_HEADER:]


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))
