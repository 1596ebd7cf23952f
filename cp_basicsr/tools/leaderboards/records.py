"""Records of single images, kept in files so that a killed run goes on and several processes share the work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cp_basicsr.tools.report import write_text


@dataclass
class RunRecord:
    """What one row measured on one image.

    Attributes:
        quality: value of each metric.
        macs_share: MACs as a fraction of the dense network's.
        seconds: that it took.
        usage: share of the tiles at each level.
        shares: share of the image's area at each level.
        flops: of a patch, as ClassSR counts; None under another protocol.
    """

    quality: dict[str, float]
    macs_share: float
    seconds: float
    usage: list[float]
    shares: list[float]
    flops: float | None = None


@dataclass
class ImageRecord:
    """All that is known of one image.

    Attributes:
        image: its name.
        machine: what it was measured on.
        by_tile: whether it was routed by tile.
        sigma: of the noise that was added to it, in 8-bit units; None without noise.
        costs: share of the dense MACs of each level.
        weights: ``[n]`` share of the image that each tile covers.
        edges: ``[n]`` edge scores.
        errors: for each level the mean squared error of each tile.
        distances: the same from the dense level's output instead of the true image; empty in records of before it was
            measured.
        timed: seconds of each run, where they were measured apart; see timing.py.
        runs: by key, such as ``level 0``, ``routed 0.5`` and ``oracle 0.5``.
    """

    image: str = ''
    machine: str = ''
    by_tile: bool = True
    sigma: float | None = None
    costs: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)
    distances: dict[str, list[float]] = field(default_factory=dict)
    timed: dict[str, float] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)


class Records:
    """The records of one dataset: a folder with a JSON file for each image, each replaced as a whole.

    Args:
        folder: made if missing.
        names: of the dataset's images, in order.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, index: int) -> ImageRecord:
        """The record of an image; an empty one where there is none."""
        try:
            content: Mapping[str, Any] = json.loads(self._path(index).read_text(encoding='utf-8'))
        except FileNotFoundError:
            return ImageRecord()
        runs = {key: RunRecord(**run) for key, run in content['runs'].items()}
        return ImageRecord(**{**content, 'runs': runs})

    def write(self, index: int, record: ImageRecord) -> None:
        """Keep a record; what another process has measured of the same image meanwhile is kept too."""
        kept = self.read(index)
        record.runs = {**kept.runs, **record.runs}
        record.distances = record.distances or kept.distances
        write_text(self._path(index), json.dumps(asdict(record)))

    def all(self) -> list[ImageRecord]:
        """Every image's record, in order."""
        return [self.read(index) for index in range(len(self.names))]

    def _path(self, index: int) -> Path:
        return self.folder / f'{index:05d}_{self.names[index]}.json'
