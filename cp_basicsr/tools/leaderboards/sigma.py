"""Level usage against the noise of each image, for sets whose sigma is drawn anew for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .measuring import routed_key
from .records import ImageRecord

BINS = 5


@dataclass
class SigmaBin:
    """Images with similar noise on one routed row.

    Attributes:
        file: the option file.
        budget: of the row.
        low, high: sigma of the images, in 8-bit units.
        images: how many they are.
        macs_share: their mean MACs as a fraction of the dense network's.
        usage: their mean share of the tiles at each level.
    """

    file: str
    budget: float
    low: float
    high: float
    images: int
    macs_share: float
    usage: list[float]


def sigma_bins(file: str, budgets: Sequence[float], records: Sequence[ImageRecord]) -> list[SigmaBin]:
    """For each budget the images in bins of equal width, empty ones left out; nothing where all have one sigma."""
    sigmas = np.array([np.nan if record.sigma is None else record.sigma for record in records])
    if np.isnan(sigmas).any() or np.ptp(sigmas) == 0:
        return []
    edges = np.linspace(sigmas.min(), sigmas.max(), BINS + 1)
    places = np.clip(np.searchsorted(edges, sigmas, side='right') - 1, 0, BINS - 1)
    bins = []
    for budget in budgets:
        runs = [record.runs[routed_key(budget)] for record in records]
        for place in np.unique(places):
            here = [run for run, own in zip(runs, places, strict=True) if own == place]
            macs = float(np.mean([run.macs_share for run in here]))
            usage = np.mean([run.usage for run in here], axis=0).tolist()
            bins.append(SigmaBin(file, budget, float(edges[place]), float(edges[place + 1]), len(here), macs, usage))
    return bins
