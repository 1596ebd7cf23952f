"""The benchmark command on small inputs: what it runs, checks, skips and writes. No timing decides anything here."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cp_basicsr.engine import winograd
from cp_basicsr.tools import benchmark
from cp_basicsr.tools.benchmarking import contenders, rivals
from cp_basicsr.tools.benchmarking.networks import Network
from cp_basicsr.tools.benchmarking.rivals import Rival, RivalUnavailableError
from cp_basicsr.tools.benchmarking.timing import Timer

pytestmark = pytest.mark.usefixtures('one_thread')

BASE = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 2}
TINY = Network('tiny', 'Tiny x2', BASE, scale=2)
SIZE = (32, 48)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders run once a round."""
    monkeypatch.setattr('cp_basicsr.tools.benchmarking.timing.SHORT', 0.0)


@torch.inference_mode()
def compare(*names: str) -> list[Any]:
    return benchmark.compare(TINY, SIZE, Timer(rounds=2), names)


def test_rows() -> None:
    """Rivals in their order, then ours, dense first, with true MACs: those of the table, for mixes the classifier's."""
    rows = compare('channels_last', 'nchw')
    net = TINY.build()
    dense, classifier = net.macs((3, *SIZE)).dense, net.classifier_macs((3, *SIZE), 16)
    names = ['PyTorch eager', 'PyTorch eager, channels_last', 'ours, 4:4', 'ours, 2:4', 'ours, 1:4']
    assert [row.name for row in rows] == [*names, 'ours, mix at 0.5', 'ours, mix at 0.35']
    assert [row.ours for row in rows] == [False] * 2 + [True] * 5
    assert [row.macs for row in rows[:5]] == [dense, dense, *(net.macs((3, *SIZE)).level(k) for k in (2, 1, 0))]
    for row, budget in zip(rows[5:], TINY.budgets, strict=True):
        # 6 tiles of equal size: a budget is met to within one of them.
        assert (row.macs - classifier) / dense == pytest.approx(budget, abs=0.75 / 6)
    assert all(len(row.rounds) == 2 and min(row.rounds) > 0 and row.error < 1e-5 for row in rows)


def test_a_network_is_the_same_at_every_call() -> None:
    for first, second in zip(TINY.build().parameters(), TINY.build().parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize('key', ['onnxruntime', 'openvino', 'openvino_bf16'])
def test_runtimes(key: str) -> None:
    """They compute what PyTorch does, bf16 less exactly."""
    pytest.importorskip('onnxscript')
    pytest.importorskip(key.removesuffix('_bf16'))
    net, x = TINY.build().bake(-1), TINY.sample(SIZE)
    rival = next(rival for rival in rivals.RIVALS if rival.key == key)
    with torch.inference_mode():
        try:
            run = rival.prepare(net, x)
        except RivalUnavailableError as error:
            if key != 'openvino_bf16':
                raise
            pytest.skip(str(error))  # a processor without bf16
        error = contenders.error_of(run(), net(x))
    assert error < (1e-5 if rival.precision == 'fp32' else 0.05)


@pytest.mark.parametrize('missing', ['onnx', 'onnxscript', 'onnxruntime', 'openvino'])
def test_a_rival_that_is_not_installed_is_skipped_by_name(
    missing: str, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f'No module named {name!r}')
        return pytest.importorskip(name)

    monkeypatch.setattr(rivals, 'import_module', import_module)
    key = 'openvino' if missing == 'openvino' else 'onnxruntime'
    rows = compare(key, 'nchw')
    assert [row.name for row in rows if not row.ours] == ['PyTorch eager']
    name = 'OpenVINO f32' if missing == 'openvino' else 'ONNX Runtime'
    hint = "`pip install 'cp-basicsr[benchmark]'` installs it."
    assert any(f"Skipped {name}: No module named '{missing}'. {hint}" in entry for entry in log)


def test_a_rival_that_fails_is_skipped_with_its_reason(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: Any, **__: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        raise RuntimeError('no C++ compiler\nand a long story')

    monkeypatch.setattr(torch, 'compile', compiled)
    assert [row.name for row in compare('compile') if not row.ours] == []
    assert 'WARNING Skipped torch.compile: RuntimeError: no C++ compiler' in log


@pytest.mark.parametrize('wrong', [1.01, float('nan')])
def test_a_contender_that_computes_something_else_is_skipped(
    wrong: float, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(net: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: net(x) * wrong

    monkeypatch.setattr(contenders, 'RIVALS', (Rival('wrong', 'Wrong', 'fp32', build),))
    assert [row.name for row in compare('wrong') if not row.ours] == []
    assert any('Skipped Wrong: it is off by' in entry for entry in log)


def test_the_command(run: Any, tmp_path: Path) -> None:
    """One network from another folder; table on standard output and in files, and nothing else written."""
    command = [sys.executable, '-m', 'cp_basicsr.tools.benchmark', '--quick', '--networks', 'srvgg']
    command += ['--rivals', 'nchw', 'channels_last', '--rounds', '1', '--sizes', '16x24', '--threads', '1']
    command += ['--json', 'figures.json', '--out', 'table.md', '--chart', 'chart.svg']
    done = run(*command, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['chart.svg', 'figures.json', 'table.md']
    assert done.stdout == (tmp_path / 'table.md').read_text()
    assert '**SRVGGNetCompact x4, input 24 x 16, output 96 x 64**' in done.stdout and '1 thread' in done.stdout
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert len(figures['results']) == 7 == len([line for line in done.stdout.splitlines() if '| fp32 |' in line])
    assert all(row['time_ratio'] > 0 and row['efficiency'] > 0 for row in figures['results'])
    assert 'Load average' in done.stderr


@pytest.mark.parametrize('mode', ['--scaling', '--overhead'])
def test_other_measurements(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.NETWORKS, 'tiny', TINY)
    monkeypatch.setattr(benchmark, 'QUICK_MEGAPIXELS', (0.004, 0.008))
    command = [mode, '--networks', 'tiny', '--quick', '--rounds', '1', '--sizes', '32x48']
    command += ['--json', str(tmp_path / 'new' / 'out.json')]
    if mode == '--scaling':
        command += ['--chart', str(tmp_path / 'out.png')]
    options = benchmark.parse(command)
    text = benchmark.run(options)
    content = json.loads((tmp_path / 'new/out.json').read_text())
    if mode == '--overhead':
        assert content['overhead']['dense'] > 0 and '| routing in all |' in text
        return
    size, density, threads = content['scaling']['curves'].values()
    assert [name for name in size] == ['PyTorch eager, channels_last', 'ours, 8:8', 'ours, 4:8', 'ours, 1:8']
    assert all(len(points) == 2 for points in size.values())
    assert [position for position, _ in density['ours']] == [n / 8 for n in range(1, 9)]
    assert [position for position, _ in threads['ours, 8:8']] == [1]
    assert (tmp_path / 'out.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--networks', 'esdr'], "--networks holds 'esdr'. Did you mean 'edsr'"),
        (['--rivals', 'onnx'], "--rivals is 'onnx'; Did you mean 'onnxruntime'"),
        (['--chart', 'chart.pdf'], "--chart is 'chart.pdf'"),
        (['--sizes', '180'], "'180' is no size; write height x width"),
        (['--overhead', '--chart', 'chart.png'], '--overhead draws nothing: leave --chart out'),
        (['--scaling', '--networks', 'edsr', 'srvgg'], '--scaling measures one of --networks; 2 are given'),
        (['--overhead', '--precisions', 'bf16'], '--overhead measures fp32: leave --precisions out'),
        (['--json', '/dev/null/no/out.json'], '/dev/null/no/out.json cannot be written'),
        (['--rounds', '0'], "'0'; allowed: whole numbers from 1"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert message in f'{stop.value} {capsys.readouterr().err}'


def test_sizes_are_rounded_up_to_what_the_network_takes() -> None:
    assert TINY.sample((180, 320), multiple=8).shape == (1, 3, 184, 320)
    assert TINY.sample((180, 320)).shape == (1, 3, 180, 320)


@torch.inference_mode()
def test_our_network_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, 'is_faster', lambda *_: True)  # of so narrow layers not on every processor
    rows = benchmark.compare(TINY, SIZE, Timer(rounds=1), [], ['fp32', 'bf16'])
    assert [row.name for row in rows if row.precision == 'bf16'] == [
        f'ours, bf16, {name}' for name in ('4:4', '2:4', '1:4', 'mix at 0.5', 'mix at 0.35')
    ]
    assert all((1e-4 < row.error < 0.05) == (row.precision == 'bf16') for row in rows)
