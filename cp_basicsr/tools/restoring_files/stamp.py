"""What a restored picture says of itself, so that a later command with other settings does not pass it over.

The text stands in the Software field (TIFF 6.0 and EXIF 2.3) of PNG, JPEG, TIFF and WebP files; BMP has none.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from PIL import Image

SOFTWARE_TAG = 305
MAKER = 'cp-restore '
STAMPED = ('PNG', 'JPEG', 'TIFF', 'WEBP')


def stamp_of(checkpoint: Path, settings: dict[str, object]) -> str:
    """A stamp such as ``cp-restore net_g_latest (9f3c01d2), budget 0.5``.

    Args:
        checkpoint: the file of the network, whose content counts.
        settings: what was asked for; None stands for nothing, and is left out.
    """
    asked = [f', {name} {value}' for name, value in settings.items() if value is not None]
    name = checkpoint.stem.encode('ascii', 'backslashreplace').decode()  # what these files may hold
    return f'{MAKER}{name} ({zlib.crc32(checkpoint.read_bytes()):08x}){"".join(asked)}'


def exif_with(stamp: str) -> bytes:
    """An EXIF block that holds a stamp and nothing else."""
    exif = Image.Exif()
    exif[SOFTWARE_TAG] = stamp
    return exif.tobytes()


def read_stamp(path: Path) -> str | None:
    """The stamp of a picture that ``cp-restore`` wrote; None: it has none."""
    try:
        with Image.open(path) as image:
            found = image.getexif().get(SOFTWARE_TAG)
    except Exception:  # decoders raise nearly anything on files that are no pictures, and those have no stamp
        return None
    return found if isinstance(found, str) and found.startswith(MAKER) else None
