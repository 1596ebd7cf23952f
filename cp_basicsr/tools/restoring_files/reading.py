"""Reading a picture file with all that its restored picture keeps: bit depth, alpha, colour profile, orientation."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow refuses large pictures from strangers; these are the user's own, panoramas among them.
Image.MAX_IMAGE_PIXELS = None

BITS_TAG, ORIENTATION_TAG = 258, 274  # TIFF 6.0 and EXIF 2.3
MEANING_TAG, WHITE_IS_ZERO = 262, 0
PLANES_TAG, SEPARATE = 284, 2
EXTRA_TAG, PREMULTIPLIED = 338, 1
DEEPEST = 65535
PNG_BITS = 24  # where a PNG's header has its bit depth
PLAIN_MODES = {'1': 'L', 'L': 'L', 'LA': 'LA', 'La': 'LA', 'RGB': 'RGB', 'RGBA': 'RGBA', 'RGBa': 'RGBA', 'PA': 'RGBA'}
OTHER_COLOURS = ('CMYK', 'YCbCr', 'LAB', 'HSV')  # their colour profiles do not describe RGB


class ReadError(ValueError):
    """A file holds no picture that can be restored; the message says why."""


@dataclass(frozen=True)
class PictureFile:
    """What a file holds.

    Attributes:
        pixels: uint8 or uint16, upright, ``[H, W]``, or ``[H, W, C]`` with 2 (gray and alpha), 3 (RGB) or 4 channels.
        profile: ICC colour profile of the pixels, or None.
    """

    pixels: np.ndarray
    profile: bytes | None


def read_picture(path: Path) -> PictureFile:
    """Read a PNG, JPEG, TIFF, WebP or BMP file of 8 or 16 bit.

    Palettes and the colours of print become RGB, black and white becomes gray.

    Raises:
        ReadError: the file cannot be read, is broken, has another bit depth or holds several pictures.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadError(f'cannot be read ({error.strerror})') from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return _picture(image, content)
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise ReadError(
            f'is no PNG, JPEG, TIFF, WebP or BMP picture of 8 or 16 bit ({len(content)} bytes, beginning with '
            f'{content[:8]!r})'
        ) from None
    except Exception as error:  # decoders raise nearly anything on broken files
        raise ReadError(f'is broken ({error})') from error


def _picture(image: Image.Image, content: bytes) -> PictureFile:
    # Telephones write JPEG files with a second picture (MPO) for depth; the first is the photograph.
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':
        raise ReadError(f'holds {image.n_frames} pictures; only single ones are restored')
    profile = image.info.get('icc_profile')
    bits = _bits(image, content)
    if bits > 8:
        return PictureFile(_deep_pixels(image, content, bits), profile)
    image = ImageOps.exif_transpose(image)
    if image.mode in OTHER_COLOURS:
        return PictureFile(np.asarray(image.convert('RGB')), None)
    mode = PLAIN_MODES.get(image.mode, 'RGB')
    if image.has_transparency_data and mode not in ('LA', 'RGBA'):
        mode = 'RGBA'
    return PictureFile(np.asarray(image.convert(mode)), profile)


def _bits(image: Image.Image, content: bytes) -> int:
    if image.format == 'PNG':
        return content[PNG_BITS]
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS_TAG, (1,)))
    return 8


def _deep_pixels(image: Image.Image, content: bytes, bits: int) -> np.ndarray:
    """16-bit pixels, which Pillow does not give of colour pictures."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if bits == 16 else None
    if pixels is None or pixels.dtype != np.uint16:
        raise ReadError(f'has {bits} bits for each value in a form that cannot be read; allowed: 8 or 16')
    if image.format == 'TIFF':
        pixels = _as_tiff_means(pixels, image.tag_v2)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
        if image.mode == 'LA':
            pixels = pixels[..., [0, 3]]
    # OpenCV has turned TIFF pictures upright, and no others.
    return pixels if image.format == 'TIFF' else upright(pixels, image.getexif().get(ORIENTATION_TAG, 1))


def _as_tiff_means(pixels: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """16-bit values, which OpenCV gives as they are stored, as TIFF 6.0 means them.

    Raises:
        ReadError: each colour is stored by itself, which OpenCV takes for something else.
    """
    if pixels.ndim == 3 and tags.get(PLANES_TAG) == SEPARATE:
        raise ReadError('is a TIFF picture of 16 bits that stores each colour by itself; save it with colours together')
    if tags.get(MEANING_TAG) == WHITE_IS_ZERO:
        pixels = DEEPEST - pixels
    extra = tags.get(EXTRA_TAG, ())
    if PREMULTIPLIED in (extra if isinstance(extra, tuple) else (extra,)) and pixels.ndim == 3:
        alpha = pixels[..., 3:].astype(np.float64)
        colour = np.rint(pixels[..., :3] * (DEEPEST / np.maximum(alpha, 1))).clip(max=DEEPEST)
        pixels = np.dstack([colour, alpha]).astype(np.uint16)
    return pixels


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror ``[H, W, ...]`` as an EXIF orientation from 1 to 8 says; others are left alone."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
