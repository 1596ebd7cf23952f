"""The benchmark's limits: counts worked out by hand, loops and stages that do what they say, and the command."""

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled import HAS_BF16, Layer, each_set, needs_engine, random_mask

from cp_basicsr.engine import compiled_layer, threads, winograd
from cp_basicsr.engine.compiled_layer import PACKS
from cp_basicsr.engine.inputs import Inputs
from cp_basicsr.engine.instructions import PIXELS
from cp_basicsr.engine.native import Routine
from cp_basicsr.engine.schedule import uniform_schedule
from cp_basicsr.tools import benchmark
from cp_basicsr.tools.benchmarking import limits, limits_tables, peak, stages, timing
from cp_basicsr.tools.benchmarking.limits import LevelLimits, Limits, Rate, Work
from cp_basicsr.tools.benchmarking.results import Result
from cp_basicsr.tools.benchmarking.stages import STAGES, TRANSFORMS

pytestmark = [needs_engine, pytest.mark.usefixtures('one_thread')]

ALL, FEW = 8, 1  # of 8: Winograd's convolution, and a pattern's own code


def layer(n: int, isa: str, channels: int = 16, outputs: int = 24) -> Layer:
    mask = random_mask((outputs, channels, 3, 3), n, 8, torch.Generator().manual_seed(n))
    made = Layer(isa, [mask], stride=1, padding=(1, 1), bias=True)
    assert made.compiled.transformed == (n == ALL,)
    return made


@pytest.mark.parametrize(
    ('size', 'channels', 'outputs', 'block', 'paired', 'expected'),
    [
        ((128, 128), 64, 64, 24, False, 36 * 32 * 32 * 64 * 64),
        ((128, 128), 64, 64, 6, False, 36 * 32 * 32 * 64 * 66),  # ten blocks of 6, and 4 are computed as 6
        ((5, 17), 3, 20, 24, False, 36 * (2 * 8) * 3 * 24),  # two rows of tiles, eight of two vectors in each
        ((4, 16), 5, 24, 24, True, 36 * 4 * 6 * 24),  # an odd channel is paired with zeros
    ],
)
def test_multiply_adds_of_winograd(
    size: tuple[int, int], channels: int, outputs: int, block: int, paired: bool, expected: int
) -> None:
    assert limits.winograd_macs(size, channels, outputs, block, paired) == expected


@each_set
def test_work(isa: str) -> None:
    """On 10 x 20 pixels, which are 10 x 32 in whole vectors, and of tiles 3 x 8."""
    block = {'avx512': 24, 'avx2': 6}[isa]
    sparse = layer(FEW, isa)
    mask = sparse.weights[0].numpy() != 0
    work = limits.work_of(sparse.compiled, 0, mask, (10, 20))
    assert work.macs == 10 * 32 * 9 * 24 * 16 // 8
    read = {(first // block, *tap) for first, *tap in np.argwhere(mask).tolist()}
    assert work.loads == 10 * 2 * len(read)
    assert work.code_bytes > 7 * 9 * 24 * 16 // 8  # a multiply-add takes 7 bytes at least
    dense = limits.work_of(layer(ALL, isa).compiled, 0, np.ones((24, 16, 3, 3), bool), (10, 20))
    assert (dense.macs, dense.code_bytes) == (36 * 3 * 8 * 16 * 24, 0)
    assert dense.loads == 36 * 3 * 8 * 16 // 16 * (24 // block)  # 16 tiles lie in one vector
    assert dense.code == f'{work.code} winograd'


def run_loop(source: peak._Loop, sums: int, repeats: int, *values: np.ndarray) -> np.ndarray:
    """Bits of the sums ``[sums, PIXELS]`` after one piece."""
    job = peak._Job(*(each.ctypes.data for each in values), repeats, 1)
    threads.run(Routine(source), job, 1, sums * PIXELS)
    memory = (ctypes.c_uint32 * (sums * PIXELS)).from_address(threads._scratch(4 * sums * PIXELS))
    return np.frombuffer(memory, np.uint32).reshape(sums, PIXELS).copy()


@pytest.mark.parametrize('source', [peak._Products, peak._LoadedProducts])
def test_loop_of_products(source: type[peak._Loop]) -> None:
    """50 passes over 32 terms add the first 18 twice; in registers they add the first 50 times."""
    generator = np.random.default_rng(0)
    inputs, weights = (generator.integers(-3, 4, size=(peak.TERMS, width)).astype(np.float32) for width in (PIXELS, 6))
    starts = generator.integers(-9, 9, size=(6, PIXELS)).astype(np.float32)
    order = np.arange(50) % peak.TERMS
    expected = starts + weights[order].T @ inputs[order]
    if not source.loads:
        expected = starts + 50 * weights[0, 0] * inputs[0]
    sums = run_loop(source(6), 6, 50, inputs, weights, starts).view(np.float32)
    assert np.array_equal(sums, expected)


@pytest.mark.skipif(not HAS_BF16, reason='no bf16 here')
def test_loop_of_products_in_bf16() -> None:
    """1 * 2 + 3 * 0.5 in each lane."""
    inputs = np.full((peak.TERMS, PIXELS), 0x40403F80, np.uint32)
    weights = np.full((peak.TERMS, 6), 0x3F004000, np.uint32)
    starts = np.arange(6 * PIXELS, dtype=np.float32).reshape(6, PIXELS)
    sums = run_loop(peak._PairedProducts(6), 6, 10, inputs, weights, starts).view(np.float32)
    assert np.array_equal(sums, starts + 35)


def test_loop_of_loads() -> None:
    """Each sum is the exclusive or of what was loaded for it; 17 passes over 16 rows load the first row twice."""
    generator = np.random.default_rng(0)
    inputs = generator.integers(0, 2**32, size=(peak.TERMS, PIXELS), dtype=np.uint32)
    starts = generator.integers(0, 2**32, size=(6, PIXELS), dtype=np.uint32)
    flat, expected = inputs.reshape(-1), starts.copy()
    for row in [*range(16), 0]:
        for k in range(6):
            begin = 16 * row + 16 * (k // 3) + k % 3
            expected[k] ^= flat[begin : begin + 16]
    unused = np.zeros((peak.TERMS, 6), np.uint32)
    assert np.array_equal(run_loop(peak._Loads(6), 6, 17, inputs, unused, starts), expected)


def test_a_peak_counts_what_its_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, 8 pieces of 5 passes over all sums, of 16 lanes, of two products in bf16; a load is one."""
    monkeypatch.setattr(peak, 'REPEATS', 5)
    sums = peak._sums()
    counts = [each.count for each in (peak.MACS['fp32'], peak.LOADED_MACS, peak.MACS['bf16'], peak.LOADS)]
    assert counts == [8 * 5 * sums * n for n in (16, 16, 32, 1)]
    peak.LOADS.prepare()()


WRITTEN = {  # parts of a thread's scratch memory, by the stage that writes them
    ALL: {'copy': 'inputs', 'transform': 'transformed', 'products': 'products', 'transform back': 'sums'},
    FEW: {'copy': 'inputs', 'products': 'sums'},
}


@pytest.mark.parametrize('n', [ALL, FEW])
@each_set
def test_stages(isa: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to each stage, memory that the later ones write is left alone; the whole is the convolution."""
    made = layer(n, isa)
    compiled, scratch = made.compiled, made.compiled.scratch
    monkeypatch.setattr(compiled_layer, 'empty_map', lambda *shape: torch.full(shape[:4], torch.nan))
    x = torch.rand(1, 16, 16, 32)
    schedule = uniform_schedule(1, 16, 32, 0, scratch, 1)
    terms = (winograd.terms(16, False) | 1) * PIXELS
    sizes = {
        'inputs': scratch.floats,
        'sums': scratch.positions * compiled.block * PIXELS,
        'transformed': PACKS * winograd.PRODUCTS * terms,
        'products': winograd.PRODUCTS * compiled.block * PIXELS,
    }
    ends = np.cumsum(list(sizes.values()))
    room = 4096  # strides are rounded up to pages; memory that is too small would be replaced
    memory = (ctypes.c_float * int(ends[-1])).from_address(threads._scratch(4 * int(ends[-1]) + room))
    parts = dict(zip(sizes, np.split(np.frombuffer(memory, np.float32), ends[:-1]), strict=True))
    runs = stages.stage_runs(compiled, Inputs((x,)), schedule, n == ALL)
    assert list(runs) == [stage for stage in STAGES if n == ALL or stage not in TRANSFORMS]
    expected: set[str] = set()
    for stage, run in runs.items():
        for part in parts.values():
            part[:] = np.nan
        output = run()
        expected |= {WRITTEN[n][stage]} if stage in WRITTEN[n] else set()
        assert {name for name, part in parts.items() if not np.isnan(part).all()} == expected
        assert torch.isnan(output).all() == (stage != 'store')
    whole = F.conv2d(x, made.weights[0], made.biases[0], padding=1)
    assert torch.allclose(output, whole, atol=1e-4)


def test_seconds_of_stages() -> None:
    assert stages.stage_seconds({'call': 1.0, 'copy': 3.0, 'products': 7.0}) == {'call': 1, 'copy': 2, 'products': 4}


def result(name: str, seconds: float, ours: bool, precision: str = 'fp32', macs: int = 100) -> Result:
    return Result('Layer', (16, 32), name, precision, ours, macs, 100, (seconds,), 1e-6)


@pytest.fixture
def measured() -> Limits:
    """Half of 100 MACs in 0.4 s, of which products take 0.2 s and would take 0.1 s at the peak; a rival in 0.5 s."""
    work = Work('avx512', 'fp32', 80, 30, 2048)
    spent = {'network': 0.1, 'call': 0.0, 'copy': 0.1, 'products': 0.2, 'store': 0.0}
    level = LevelLimits('4:8', result('ours, 4:8', 0.4, True, macs=50), work, spent, 0.1, 0.05)
    rivals = (result('slow', 0.8, False), result('quick', 0.5, False), result('low', 0.2, False, 'bf16'))
    rates = (Rate('multiply-adds', 80, 'MAC', 0.1), Rate('copying', 4 * 10**9, 'B', 2.0))
    return Limits((16, 32), rates, {'fp32': 800.0}, (level,), rivals)


def test_figures(measured: Limits) -> None:
    """At the peak the rival's time is 5 limits; to be twice as fast as it takes 0.25 s, 0.4 of them at the peak."""
    (level,) = measured.levels
    assert measured.rival.name == 'quick'
    assert level.reached == pytest.approx(0.5)
    assert level.most(measured.rival) == pytest.approx(5)
    assert level.needed(measured.rival) == pytest.approx(0.4)
    assert measured.share_of_peak(measured.rival) == pytest.approx(100 / 0.5 / 800)
    assert measured.share_of_peak(measured.rivals[2]) is None


def test_tables(measured: Limits) -> None:
    lines = [
        [cell.strip() for cell in line.split('|')[1:-1]] for line in limits_tables.as_markdown(measured).split('\n')
    ]
    assert ['copying', '2.00 GB/s', '2000.00'] in lines
    assert ['fp32', '4:8', 'avx512', '400.00', '100.00', '0.00', '100.00', '', '200.00', '', '0.00'] in lines
    assert ['fp32', '4:8', '0.000', '0.000', '100.00', '200.00', '50', '50.00', '2'] in lines
    assert ['**quick**', 'fp32', '500.00', '0.0', '25'] in lines and ['low', 'bf16', '200.00', '0.0', ''] in lines
    assert ['fp32', '4:8', '2.00', '1.25x', '5.00x', '40'] in lines


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, 'SHORT', 0.0)
    monkeypatch.setattr(peak, 'REPEATS', 100)
    monkeypatch.setattr(limits, 'LARGE', 4096)
    command = ['--limits', '--quick', '--sizes', '16x24', '--rivals', 'nchw', '--json', str(tmp_path / 'out.json')]
    command += ['--precisions', 'fp32', 'bf16'] if HAS_BF16 else []
    text = benchmark.run(benchmark.parse([*command, '--out', str(tmp_path / 'out.md')]))
    assert '**64->64 3x3 layer, input 24 x 16**' in text and text == (tmp_path / 'out.md').read_text()
    for head in ('limit of the machine', 'ms in all', 'multiplied', 'dense rival', 'at most'):
        assert head in text
    (record,) = json.loads((tmp_path / 'out.json').read_text())['limits']
    levels = record['levels']
    assert [level['label'] for level in levels] == ['8:8', '4:8', '2:8', '1:8'] * (1 + HAS_BF16)
    assert [level['result']['macs'] for level in levels[:4]] == [9 * 64 * 64 * 16 * 24 * n // 8 for n in (8, 4, 2, 1)]
    for level in levels:
        assert sum(level['stages'].values()) == pytest.approx(level['seconds'])
        assert level['limit'] > 0 and level['most'] > 0 and level['rival'] == 'PyTorch eager'
    assert [rate['unit'] for rate in record['rates']] == ['MAC'] * (2 + HAS_BF16) + ['load', 'B', 'B']
    assert all(rate['per_second'] > 0 for rate in record['rates'])
    assert [rival['name'] for rival in record['rivals']] == ['PyTorch eager']


@pytest.mark.parametrize(
    ('engine', 'arguments', 'message'),
    [
        ('reference', [], 'there is none: CP_ENGINE=reference.'),
        ('avx2', ['--precisions', 'bf16'], 'there is none: bf16 is asked for, avx2 code'),
        ('', ['--networks', 'edsr'], 'leave --networks out, or write layer'),
        ('', ['--chart', 'chart.png'], 'leave --chart out'),
    ],
)
def test_what_cannot_be_measured_is_named(
    engine: str, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('CP_ENGINE', engine)
    with pytest.raises(SystemExit, match=message):
        benchmark.main(['--limits', *arguments])
