"""Level usage against noise, for images each with a sigma of its own."""

from pathlib import Path

import leaderboards
import pytest
from leaderboards import run
from training import SRVGG

from cp_basicsr.tools import plots
from cp_basicsr.tools.leaderboards.records import ImageRecord, RunRecord
from cp_basicsr.tools.leaderboards.sigma import sigma_bins


def record(sigma: float | None, macs: float, usage: list[float]) -> ImageRecord:
    return ImageRecord(sigma=sigma, runs={'routed 0.5': RunRecord({}, macs, 0.1, usage, usage)})


def test_bins_of_equal_width_by_hand() -> None:
    """0 to 50 in five bins: 0 and 9 fall into the first, 20 is the third's lower end, 50 falls into the last."""
    records = [
        record(0, 0.2, [1, 0]), record(9, 0.4, [0.5, 0.5]), record(20, 0.5, [0, 1]), record(50, 1, [0, 1])
    ]  # fmt: skip
    bins = sigma_bins('file', [0.5], records)
    assert [(each.low, each.high, each.images) for each in bins] == [(0, 10, 2), (20, 30, 1), (40, 50, 1)]
    assert bins[0].macs_share == pytest.approx(0.3) and bins[0].usage == [0.75, 0.25]
    assert [each.macs_share for each in bins[1:]] == [0.5, 1]


@pytest.mark.parametrize('sigmas', [(25, 25), (None, None)])
def test_nothing_where_noise_does_not_differ(sigmas: tuple[float | None, ...]) -> None:
    assert sigma_bins('file', [0.5], [record(sigma, 0.5, [1, 0]) for sigma in sigmas]) == []


def test_a_blind_denoiser(tmp_path: Path, one_thread: None) -> None:
    dataset = {
        'name': 'Mixed', 'type': 'GaussianNoiseDataset', 'dataroot_gt': str(tmp_path / 'gt'), 'sigma': [5, 50],
        'io_backend': {'type': 'disk'},
    }  # fmt: skip
    base = {**SRVGG, 'upscale': 1}
    leaderboards.tiny_network(tmp_path, base, dataset)
    (table,) = run(leaderboards.test_file_options(tmp_path, base, dataset), tmp_path, '--budgets', '0.6', '--controls')
    assert table['dataset'] == 'Mixed sigma 5 to 50' and len(table['sigma']) == 2
    first, last = table['sigma']
    assert 5 <= first['low'] < first['high'] <= last['low'] < last['high'] <= 50
    assert '| sigma | budget, % | images |' in (tmp_path / 'out/results.md').read_text()
    written = plots.plot_files([tmp_path / 'out/results.json'], tmp_path / 'plots')
    assert tmp_path / 'plots/Mixed_sigma_5_to_50_usage_sigma_0.6.png' in written
