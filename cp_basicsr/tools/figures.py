"""Matplotlib without a screen, and figures that are written whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cp_basicsr.data.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pyplot() -> Any:
    """``matplotlib.pyplot``, imported when it is first needed, drawing into files only."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    return plt


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure in the format of the extension, under a temporary name that is renamed.

    Args:
        figure: stays open.
        path: PNG, JPEG or SVG.
        options: of matplotlib's ``savefig``.
    """
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix[1:], **options)
    write_whole(path, file.getvalue())
