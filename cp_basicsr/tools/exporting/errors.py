"""Refusals of the export tool."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class ExportError(ValueError):
    """A file cannot be exported or checked; the message says why and what to do."""


def needed(module: str, purpose: str) -> ModuleType:
    """Import a package of the extra ``export``.

    Raises:
        ExportError: it is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ExportError(
            f"{purpose} needs {module.partition('.')[0]} ({error}). Install it: pip install 'cp-basicsr[export]'."
        ) from None
