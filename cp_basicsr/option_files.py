"""Where the option files of this package lie, in a checkout and in an installation."""

from __future__ import annotations

from pathlib import Path

from cp_basicsr.options import OptionError, nearest

PACKAGE = Path(__file__).parent


def option_folder() -> Path:
    """``options/`` of a checkout, else the copy that a wheel installs."""
    checkout = PACKAGE.parent / 'options'
    return checkout if (PACKAGE.parent / 'setup.py').is_file() else PACKAGE / 'options_installed'


def option_file(name: str) -> Path:
    """Path of an option file by its name.

    Raises:
        OptionError: there is none of this name.
    """
    path = option_folder() / name
    if not path.is_file():
        names = sorted(file.name for file in option_folder().glob('*.yml'))
        raise OptionError(f'No option file {name!r} in {option_folder()}.{nearest(name, names)}')
    return path
