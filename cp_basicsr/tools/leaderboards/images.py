"""The images of a test set in an order that does not depend on the file system, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, default_collate


class Images:
    """Numbers the images of a BasicSR dataset by their paths; BasicSR itself takes them as a folder lists them.

    Args:
        dataset: a test set. One that does not tell its ``paths`` keeps its order, and numbers are names.
        most: only the first so many count; None takes all.

    Attributes:
        names: of the images, in order; those of one name lie in several folders.
    """

    def __init__(self, dataset: Dataset, most: int | None = None) -> None:
        self._dataset = dataset
        paths = [_path(path) for path in getattr(dataset, 'paths', [])]
        if len(paths) != len(dataset):
            paths = [f'{index:05d}' for index in range(len(dataset))]
        self._order = sorted(range(len(paths)), key=paths.__getitem__)[:most]
        self.names = [Path(paths[index]).stem for index in self._order]

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, number: int) -> dict[str, Any]:
        """A batch of one image."""
        return default_collate([self._dataset[self._order[number]]])


def _path(entry: str | Mapping[str, str]) -> str:
    """PairedImageDataset lists pairs of paths, others single ones."""
    return entry if isinstance(entry, str) else entry['lq_path']
