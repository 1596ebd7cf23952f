"""The comparison table of a small network, its files, and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from training import (
    METRICS,
    SRVGG,
    build,
    separate,
    training_options,
    user_options,
    user_test_options,
    validation_loader,
    write_pairs,
)

from cp_basicsr.options import OptionError
from cp_basicsr.routing.picture import LEGEND_HEIGHT
from cp_basicsr.routing.policy import BudgetError
from cp_basicsr.tools import compare

pytestmark = pytest.mark.usefixtures('one_thread')
SIZE = (64, 80)
BUDGETS = ['0.6', '0.8', '0.5']


@pytest.fixture
def net(tmp_path: Path) -> Any:
    """A network whose checkpoint lies in `net_g_latest.pth` and whose classifier gives tiles different levels."""
    write_pairs(tmp_path, size=SIZE)
    options = training_options(tmp_path)
    model = build(options)
    separate(model.net.classifier, [data['lq'] for data in validation_loader(options)], tile=8)
    model.save_network(model.net_g, 'net_g', -1)
    return model.net.eval()


@pytest.fixture
def options(net: Any, tmp_path: Path) -> dict[str, Any]:
    """A test option file for it."""
    return user_test_options(user_options(tmp_path), tmp_path / 'experiments/tiny/models/net_g_latest.pth')


def run(options: dict[str, Any], folder: Path, *arguments: str) -> None:
    path = folder / 'test.yml'
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    compare.main(['-opt', str(path), *arguments])


def test_rows(net: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Dense, each static level, and routed beside random at each budget, with true MACs."""
    run(options, tmp_path, '--budgets', *BUDGETS, '--out', str(tmp_path / 'out'))
    rows = json.loads((tmp_path / 'out/val/table.json').read_text())
    assert [row['name'] for row in rows] == [
        'dense', 'static 2:4', 'static 1:4', 'routed, budget 0.8', 'random, budget 0.8', 'routed, budget 0.6',
        'random, budget 0.6', 'routed, budget 0.5', 'random, budget 0.5',
    ]  # fmt: skip
    assert [row['kind'] for row in rows] == ['static'] * 3 + ['routed', 'random'] * 3
    assert all(row['seconds'] > 0 and sum(row['usage']) == pytest.approx(1) for row in rows)
    costs = net.costs((3, *SIZE)).tolist()
    assert [row['macs_share'] for row in rows[:3]] == pytest.approx([1, costs[1], costs[0]])
    assert [row['usage'] for row in rows[:3]] == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    classifier = net.classifier_macs((3, *SIZE), 8) / net.macs((3, *SIZE)).dense
    for routed, random, budget in zip(rows[3::2], rows[4::2], (0.8, 0.6, 0.5), strict=True):
        assert routed['macs_share'] == pytest.approx(budget, abs=0.03)
        assert routed['macs_share'] - classifier == pytest.approx(random['macs_share'])
        assert random['usage'] == pytest.approx(routed['usage'])
        assert random['quality']['psnr'] != routed['quality']['psnr']


def test_the_quality_of_static_levels_is_that_of_the_plain_networks(
    net: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    run(options, tmp_path, '--out', str(tmp_path / 'out'), '--budgets', '0.6')
    rows = json.loads((tmp_path / 'out/val/table.json').read_text())[:3]
    for row, level in zip(rows, (-1, 1, 0), strict=True):
        plain, quality = net.bake(level), []
        for data in validation_loader(training_options(tmp_path)):
            with torch.no_grad():
                images = {'img': tensor2img(plain(data['lq'])), 'img2': tensor2img(data['gt'])}
            quality.append({name: calculate_metric(images, METRICS[name]) for name in ('psnr', 'ssim')})
        for name in ('psnr', 'ssim'):
            assert row['quality'][name] == pytest.approx(np.mean([each[name] for each in quality]), rel=1e-6)


def test_files(options: dict[str, Any], tmp_path: Path, log: list[str]) -> None:
    """A table for people, the same for programs, pictures of the middle budget, level maps, a plot; no leftovers."""
    run(options, tmp_path, '--budgets', *BUDGETS, '--out', str(tmp_path / 'out'))
    folder = tmp_path / 'out/val'
    names = ['image0.png', 'image0_levels.png', 'image1.png', 'image1_levels.png']
    assert sorted(path.name for path in folder.iterdir()) == [*names, 'psnr_macs.png', 'table.json', 'table.md']
    for name in names:
        height = 2 * SIZE[0] + ('levels' in name) * LEGEND_HEIGHT
        assert cv2.imread(str(folder / name)).shape == (height, 2 * SIZE[1], 3)
    plot = cv2.imread(str(folder / 'psnr_macs.png'))
    assert plot.shape[0] > 300 and len(np.unique(plot.reshape(-1, 3), axis=0)) > 20

    text = (folder / 'table.md').read_text()
    assert any(text.strip() in entry for entry in log)
    assert text.startswith('val: PyTorch ') and '1 threads' in text.splitlines()[0]
    table = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']
    assert table[0] == ['', 'PSNR', 'SSIM', 'MACs %', 's / image', 'tiles 1:4', 'tiles 2:4', 'tiles 4:4']
    rows = json.loads((folder / 'table.json').read_text())
    assert len(table) == 2 + len(rows)
    for line, row in zip(table[2:], rows, strict=True):
        assert line[0] == row['name']
        assert line[1:3] == [f'{row["quality"]["psnr"]:.2f}', f'{row["quality"]["ssim"]:.4f}']
        assert line[3] == f'{100 * row["macs_share"]:.1f}'
        assert line[5:] == [f'{100 * share:.0f} %' for share in row['usage']]


def test_without_a_folder_only_the_log_is_written(options: dict[str, Any], tmp_path: Path, log: list[str]) -> None:
    before = set(tmp_path.rglob('*'))
    run(options, tmp_path, '--budgets', '0.6')
    assert set(tmp_path.rglob('*')) - before == {tmp_path / 'test.yml'}
    assert sum('| routed, budget 0.6 |' in entry for entry in log) == 1


def test_whole_images_are_shuffled_among_each_other(options: dict[str, Any], tmp_path: Path) -> None:
    """A random route has the same levels on other images where each image has one level."""
    options['val']['tile'] = None
    run(options, tmp_path, '--budgets', '0.8', '--out', str(tmp_path / 'out'))
    routed, random = json.loads((tmp_path / 'out/val/table.json').read_text())[3:]
    assert random['usage'] == pytest.approx(routed['usage'])
    assert random['macs_share'] <= routed['macs_share']


def test_a_budget_outside_the_levels_is_refused_and_leaves_no_table(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r'budget.* 0\.1, outside what the levels allow: 0\.\d+'):
        run(options, tmp_path, '--budgets', '0.1', '--out', str(tmp_path / 'out'))
    assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'model_type': 'SRModel', 'network_g': SRVGG},
            r"test\.yml: model_type is 'SRModel'; only a ClassPruningModel",
        ),
        ({'val': {'save_img': False}}, r'test\.yml: val\.metrics is missing'),
    ],
)
def test_option_files_with_nothing_to_compare(
    changes: dict[str, Any], message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        run(options | changes, tmp_path)


def test_the_command_names_a_missing_option_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(f'-opt {tmp_path / "absent.yml"}: No such file')):
        compare.main(['-opt', str(tmp_path / 'absent.yml')])
