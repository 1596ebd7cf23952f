"""Figures of the benchmark that can be worked out by hand: ratios, tables, drawn maps, sizes, order of timing."""

import math
from pathlib import Path

import cv2
import pytest
import torch

from cp_basicsr.options import OptionError
from cp_basicsr.tools.benchmarking import chart, results, scaling, timing
from cp_basicsr.tools.benchmarking.mixes import drawn_map, level_shares
from cp_basicsr.tools.benchmarking.overhead import Overhead
from cp_basicsr.tools.benchmarking.results import Result
from cp_basicsr.tools.benchmarking.timing import Timer

COSTS = torch.tensor([0.25, 0.5, 1.0])


def result(
    name: str, rounds: tuple[float, ...], macs: int = 100, ours: bool = False, precision: str = 'fp32'
) -> Result:
    return Result('Net x4', (180, 320), name, precision, ours, macs, 100, rounds, 1e-6)


@pytest.fixture
def table() -> list[Result]:
    return [
        result('eager', (0.5, 0.9, 0.4)),
        result('quick', (0.31, 0.2, 0.3)),
        result('low', (0.15, 0.15, 0.15), precision='bf16'),
        result('ours, 2:4', (0.2, 0.1, 9.0), macs=50, ours=True),
    ]


def test_ratios(table: list[Result]) -> None:
    """Medians 0.5, 0.3, 0.15 and 0.2 s: ours is 1.5 times as fast for half the MACs."""
    eager, quick, low, ours = table
    assert [row.seconds for row in table] == [0.5, 0.3, 0.15, 0.2]
    assert results.best_rival(table, 'fp32') is quick
    assert results.best_rival(table, 'bf16') is low
    assert ours.macs_ratio == 2
    assert results.time_ratio(ours, quick) == pytest.approx(1.5)
    assert results.efficiency(ours, quick) == pytest.approx(0.75)
    assert results.time_ratio(ours, low) == pytest.approx(0.75)
    assert results.time_ratio(eager, quick) == pytest.approx(0.6)


def test_our_own_rows_are_no_rivals(table: list[Result]) -> None:
    assert results.best_rival(table[3:], 'fp32') is None
    assert results.time_ratio(table[3], None) is results.efficiency(table[3], None) is None


def test_table(table: list[Result]) -> None:
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in results.as_markdown(table).splitlines()]
    assert lines[0] == list(results.HEAD) and len(lines) == 6
    assert lines[2] == ['eager', 'fp32', '500', '0.00', '100.0', '1.00', '0.60x', '0.30x', '', '1e-06']
    assert lines[3][0] == '**quick**' and lines[3][6] == '1.00x'
    assert lines[5] == ['ours, 2:4', 'fp32', '200', '0.00', '50.0', '2.00', '1.50x', '0.75x', '0.75', '1e-06']


def test_table_without_rivals(table: list[Result]) -> None:
    line = results.as_markdown(table[3:]).splitlines()[2]
    assert [cell.strip() for cell in line.split('|')[7:10]] == ['', '', '']


def test_record(table: list[Result]) -> None:
    record = results.as_record(table[3], table)
    assert record['seconds'] == 0.2 and record['rounds'] == (0.2, 0.1, 9.0)
    assert record['best_fp32_rival'] == 'quick' and record['efficiency'] == pytest.approx(0.75)


@pytest.mark.parametrize('budget', [0.27, 0.35, 0.5, 0.9])
def test_shares_meet_the_budget_and_are_as_even_as_it_allows(budget: float) -> None:
    """Of all shares with one mean cost, the most even ones fall exponentially with the cost."""
    shares = level_shares(COSTS, budget)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares @ COSTS.double()) == pytest.approx(budget, abs=1e-9)
    slopes = shares.log().diff() / COSTS.double().diff()
    assert float(slopes[0]) == pytest.approx(float(slopes[1]))


@pytest.mark.parametrize(('budget', 'expected'), [(0.1, [1, 0, 0]), (1.2, [0, 0, 1])])
def test_shares_beyond_the_levels(budget: float, expected: list[float]) -> None:
    assert level_shares(COSTS, budget).tolist() == pytest.approx(expected, abs=1e-6)


def test_drawn_map() -> None:
    levels = drawn_map((180, 320), 16, COSTS, 0.5)
    assert levels.shape == (1, 12, 20) and levels.dtype == torch.long
    assert float(COSTS[levels].mean()) == pytest.approx(0.5, abs=1 / 240)
    assert levels.unique().tolist() == [0, 1, 2]
    assert torch.equal(levels, drawn_map((180, 320), 16, COSTS, 0.5))
    assert not torch.equal(levels.flatten(), levels.flatten().sort().values)


def test_sizes_of_outputs() -> None:
    """1280 x 720 is 0.9216 megapixels; of multiples of 40, 4.5 rows round to 4, 8 columns fit."""
    assert scaling.size_for(0.9216, scale=4, multiple=1) == (180, 320)
    assert scaling.size_for(0.9216, scale=4, multiple=40) == (160, 320)
    assert scaling.size_for(1e-9, scale=4, multiple=8) == (8, 8)


def test_table_of_curves() -> None:
    text = scaling.as_markdown({'threads': {'a': [(1, 0.5), (2, 0.25)], 'b': [(2, 1.0)]}})
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    assert cells == [['threads', '1', '2'], ['---', '---:', '---:'], ['a', '500.0', '250.0'], ['b', '', '1000.0']]


def test_overhead() -> None:
    """Classifier and policy 2 ms and a mix 3 ms above its parts, of 500 ms: 1 %."""
    measured = Overhead((180, 320), dense=0.5, classifier=0.001, choice=0.002, dense_by_map=0.505, mix=0.303, parts=0.3)
    assert measured.routing_share == pytest.approx(0.01)
    assert measured.map_share == pytest.approx(0.01)
    assert '| routing in all | 5.00 | 1.00 |' in measured.as_markdown()


def test_every_round_runs_every_contender_and_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, '_repeated', lambda run: (run(), float(len(order)))[1])
    seconds = Timer(rounds=2).interleaved({name: lambda name=name: order.append(name) for name in 'abc'})
    assert ''.join(order) == 'abc' + 'abc' + 'bca'
    assert seconds == {'a': [4, 9], 'b': [5, 7], 'c': [6, 8]}


def test_a_short_run_is_repeated_without_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def run(durations: list[float]) -> float:
        now[0] += durations.pop(0)
        return 0.0

    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
    short, long = [0.1, 0.06, 0.07, 0.08, 50.0], [0.3, 50.0]
    assert timing._repeated(lambda: run(short)) == pytest.approx(0.07)
    assert timing._repeated(lambda: run(long)) == pytest.approx(0.3)
    assert short == long == [50.0]


@pytest.mark.parametrize(('load', 'warned'), [(0.9, False), (1.1, True)])
def test_load_is_logged(load: float, warned: bool, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.os, 'getloadavg', lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(timing.os, 'cpu_count', lambda: 2)
    assert timing.log_load() == load
    assert any(f'{load:.2f} on 2 cores' in entry for entry in log)
    assert any(entry.startswith('WARNING') for entry in log) is warned


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Over each second on 2 cores this process takes 1 s; the list says for how many seconds others do, in turn."""
    others: list[float] = []
    totals = [0.0, 0.0, 0.0]

    def clock() -> tuple[float, ...]:
        clock.calls += 1
        if clock.calls % 2 == 0:
            totals[:] = [totals[0] + 1 + others.pop(0), totals[1] + 1, totals[2] + 1]
        return tuple(totals)

    clock.calls = 0
    monkeypatch.setattr(timing, '_clocks', clock)
    monkeypatch.setattr(timing.os, 'cpu_count', lambda: 2)
    monkeypatch.setattr(timing.time, 'sleep', lambda _: None)
    return others


def test_a_disturbed_sample_is_taken_again(
    clocks: list[float], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.2 s of others in a second of 2 cores are 10 %, 0.05 s are 2.5 %."""
    samples = [7.0, 5.0]
    monkeypatch.setattr(timing, '_repeated', lambda _: samples.pop(0))
    clocks += [0.2, 0.2, 0.05, 0.05]  # the first sample, two looks, the second sample
    assert Timer(rounds=1, patience=100).interleaved({'a': lambda: None}) == {'a': [5.0]}
    assert not clocks and not any(entry.startswith('WARNING') for entry in log)


@pytest.mark.parametrize(('others', 'warned'), [([0.05, 0.05], False), ([0.05, 0.2], True), ([math.nan] * 2, False)])
def test_without_patience_a_disturbed_sample_counts_and_is_warned_of(
    others: list[float], warned: bool, clocks: list[float], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, '_repeated', lambda _: 1.0)
    clocks += others
    assert Timer(rounds=2).interleaved({'a': lambda: None}) == {'a': [1.0, 1.0]}
    assert any('1 of 2 samples were taken while other processes' in entry for entry in log) is warned


@pytest.mark.parametrize('suffix', chart.FORMATS)
def test_charts(suffix: str, table: list[Result], tmp_path: Path) -> None:
    chart.bars([table, table[:2], table[3:]], tmp_path / f'bars{suffix}', 'machine')
    chart.curves({'threads': {'a': [(1, 0.5), (2, 0.25)]}}, tmp_path / f'curves{suffix}', 'machine')
    assert sorted(path.name for path in tmp_path.iterdir()) == [f'bars{suffix}', f'curves{suffix}']
    for path in tmp_path.iterdir():
        if suffix == '.png':
            picture = cv2.imread(str(path))
            assert min(picture.shape[:2]) > 300 and picture.std() > 5
        else:
            assert path.read_text().rstrip().endswith('</svg>')


def test_a_chart_of_another_format_is_refused() -> None:
    with pytest.raises(OptionError, match=r"--chart is 'a.pdf'; allowed: .*\.png or \.svg"):
        chart.check_format(Path('a.pdf'))
