"""Kinds of command-line arguments."""

from __future__ import annotations

import argparse


def read_count(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r}; allowed: whole numbers from 1')
    return int(text)
