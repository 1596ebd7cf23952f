"""Rows of the leaderboard of a small network, and what the command refuses."""

import re
import shutil
from pathlib import Path
from typing import Any

import leaderboards
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import tensor2img
from leaderboards import SIZE, run
from training import SRVGG, training_options, validation_loader

from cp_basicsr.tools import leaderboard
from cp_basicsr.tools.leaderboards.images import Images
from cp_basicsr.tools.leaderboards.settings import DEFAULT_BUDGETS

pytestmark = pytest.mark.usefixtures('one_thread')
BUDGETS = ['0.6', '0.8', '0.5']
GRAY = {**SRVGG, 'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 1}


@pytest.fixture
def net(tmp_path: Path) -> Any:
    return leaderboards.tiny_network(tmp_path)


@pytest.fixture
def options(net: Any, tmp_path: Path) -> dict[str, Any]:
    return leaderboards.test_file_options(tmp_path)


def by_kind(table: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [row for row in table['rows'] if row['kind'] == kind]


def test_rows(net: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Dense, each static level, and at each budget routed and three controls that cost the same."""
    (table,) = run(options, tmp_path, '--budgets', *BUDGETS)
    assert table['dataset'] == 'val x2' and table['images'] == 2 and table['headline'] == 'psnr_y'
    rows = table['rows']
    kinds = ['routed', 'random', 'oracle', 'edge']
    expected = ['dense', 'static 2:4', 'static 1:4'] + [f'{kind} {b}' for b in ('0.8', '0.6', '0.5') for kind in kinds]
    assert [row['name'] for row in rows] == expected
    assert [row['kind'] for row in rows] == ['static'] * 3 + kinds * 3
    assert all(row['seconds'] > 0 and sum(row['usage']) == pytest.approx(1) for row in rows)
    costs = net.costs((3, *SIZE)).tolist()
    assert [row['macs_share'] for row in rows[:3]] == pytest.approx([1, costs[1], costs[0]])
    assert [row['usage'] for row in rows[:3]] == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    tiles = SIZE[0] * SIZE[1] / 64
    for routed, random, oracle, edge in zip(*(by_kind(table, kind) for kind in kinds), strict=True):
        assert routed['macs_share'] == pytest.approx(routed['budget'], abs=0.03)
        for control in (random, edge):
            assert routed['macs_share'] - 1.5 / tiles <= control['macs_share'] <= routed['macs_share'] + 0.005
        assert oracle['macs_share'] <= routed['macs_share'] + 1 / tiles
        assert oracle['quality']['psnr_y'] > max(row['quality']['psnr_y'] for row in (routed, random, edge))
        assert len({row['quality']['psnr_y'] for row in (routed, random, edge)}) == 3


def test_static_rows_are_the_plain_networks(net: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Whatever metrics the option file names, PSNR of Y and of RGB and SSIM are those of the baked networks."""
    options['val']['metrics'] = None
    (table,) = run(options, tmp_path, '--budgets', '0.6', '--controls')
    for row, level in zip(table['rows'][:3], (-1, 1, 0), strict=True):
        plain, quality = net.bake(level), []
        for data in validation_loader(training_options(tmp_path)):
            with torch.no_grad():
                pair = tensor2img(plain(data['lq'])), tensor2img(data['gt'])
            quality.append(
                [
                    calculate_psnr(*pair, crop_border=2, test_y_channel=True),
                    calculate_psnr(*pair, crop_border=2),
                    calculate_ssim(*pair, crop_border=2, test_y_channel=True),
                ]
            )
        expected = np.mean(quality, axis=0)
        found = [row['quality'][name] for name in ('psnr_y', 'psnr_rgb', 'ssim')]
        assert found == pytest.approx(expected, rel=1e-4)


def test_gray_sets_have_gray_metrics_only_and_no_border(tmp_path: Path) -> None:
    dataset = {
        'name': 'Gray', 'type': 'GaussianNoiseDataset', 'dataroot_gt': str(tmp_path / 'gt'), 'sigma': 25,
        'color': 'gray', 'io_backend': {'type': 'disk'},
    }  # fmt: skip
    net = leaderboards.tiny_network(tmp_path, GRAY, dataset)
    options = leaderboards.test_file_options(tmp_path, GRAY, dataset)
    (table,) = run(options, tmp_path, '--budgets', '0.7', '--controls', 'edge')
    assert table['dataset'] == 'Gray sigma 25' and table['headline'] == 'psnr_gray'
    assert all(row['quality'].keys() == {'psnr_gray', 'ssim'} for row in table['rows'])
    plain = net.bake(-1)
    with torch.no_grad():
        psnr = [
            calculate_psnr(tensor2img(plain(data['lq'][None])), tensor2img(data['gt'][None]), crop_border=0)
            for data in build_dataset({**dataset, 'phase': 'test'})
        ]
    assert table['rows'][0]['quality']['psnr_gray'] == pytest.approx(np.mean(psnr), rel=1e-4)


def test_default_budgets_that_the_levels_do_not_allow_are_left_out_and_named(
    options: dict[str, Any], tmp_path: Path
) -> None:
    (table,) = run(options, tmp_path, '--controls')
    budgets = [row['budget'] for row in by_kind(table, 'routed')]
    assert budgets and set(budgets) < set(DEFAULT_BUDGETS)
    left_out = min(DEFAULT_BUDGETS)
    assert any(
        re.search(rf'Out of reach: budget .*{left_out}; the levels allow 0\.\d+', note) for note in table['notes']
    )


def test_a_budget_that_was_asked_for_is_refused_and_leaves_no_table(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r'--budgets is 0\.1, outside what the levels allow: 0\.\d+'):
        run(options, tmp_path, '--budgets', '0.1')
    assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]


def test_the_dial_asks_for_ten_budgets(options: dict[str, Any], tmp_path: Path) -> None:
    (table,) = run(options, tmp_path, '--budgets', '0.6', '--controls', '--dial')
    dial = table['dial']
    assert len(dial) == 10 and dial[-1]['requested'] == 1 and dial == sorted(dial, key=lambda point: point['requested'])
    for point in dial:
        assert point['measured'] == pytest.approx(point['requested'], abs=0.03)
        assert abs(point['measured'] - point['requested']) <= point['worst'] + 1e-9


def test_two_option_files_share_a_table(options: dict[str, Any], tmp_path: Path) -> None:
    """Rows of a network trained in another way stand in the same table with the file's name."""
    for name, size in (('ours', 8), ('classsr', 16)):
        leaderboards.write_options(
            {**options, 'val': {**options['val'], 'tile': {'size': size}}}, tmp_path / f'{name}.yml'
        )
    files = [str(tmp_path / f'{name}.yml') for name in ('ours', 'classsr')]
    leaderboard.main(['-opt', *files, '--out', str(tmp_path / 'out'), '--budgets', '0.6', '--controls'])
    (table,) = leaderboards.tables(tmp_path)
    assert [row['file'] for row in table['rows']] == ['ours'] * 4 + ['classsr'] * 4
    assert table['tile'] == {'ours': 8, 'classsr': 16}
    text = (tmp_path / 'out/results.md').read_text()
    assert '| ours: routed 0.6 |' in text and '| classsr: dense |' in text


def test_different_data_of_one_name_do_not_mix(options: dict[str, Any], tmp_path: Path) -> None:
    leaderboards.write_options(options, tmp_path / 'two.yml')
    block = options['datasets']['test_1']
    for side in ('gt', 'lq'):
        (tmp_path / 'one' / side).mkdir(parents=True)
        shutil.copy(tmp_path / side / 'image0.png', tmp_path / 'one' / side)
    one = {**block, **{f'dataroot_{side}': str(tmp_path / 'one' / side) for side in ('gt', 'lq')}}
    leaderboards.write_options({**options, 'datasets': {'test_1': one}}, tmp_path / 'one.yml')
    files = [str(tmp_path / f'{name}.yml') for name in ('two', 'one')]
    with pytest.raises(SystemExit, match='Dataset val x2 has 2 images in one option file and 1 in another'):
        leaderboard.main(['-opt', *files, '--out', str(tmp_path / 'out'), '--budgets', '0.6', '--controls'])


def test_images_are_numbered_by_path_whatever_a_folder_lists() -> None:
    class Pairs(list):
        paths = [{'lq_path': '/b/2.png'}, {'lq_path': '/a/9.png'}, {'lq_path': '/b/1.png'}]

    images = Images(Pairs([{'lq': 2}, {'lq': 9}, {'lq': 1}]))
    assert images.names == ['9', '1', '2']
    assert [int(images.batch(number)['lq']) for number in range(3)] == [9, 1, 2]
    assert Images(Pairs([{'lq': 2}, {'lq': 9}, {'lq': 1}]), most=2).names == ['9', '1']
    assert Images([{'lq': 5}]).names == ['00000']


@pytest.mark.parametrize('val', [{'tile': None}, {'budget_tolerance': None}])
def test_cost_moves_between_images_on_the_controls_too(
    val: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """Where images are routed as wholes, or cost follows difficulty freely, the whole set is one choice."""
    options['val'] |= val
    (table,) = run(options, tmp_path, '--budgets', '0.7')
    dense, *_, routed, random, oracle, edge = table['rows']
    assert any('from image to image' in note for note in table['notes'])
    for control in (random, oracle, edge):
        assert control['macs_share'] <= routed['macs_share'] + 0.01
    assert oracle['quality']['psnr_y'] >= max(row['quality']['psnr_y'] for row in (random, edge)) - 0.01
    if val == {'tile': None}:
        assert all(share in (0, 0.5, 1) for row in (routed, random, oracle, edge) for share in row['usage'])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'model_type': 'SRModel', 'network_g': SRVGG},
            r"tiny_test\.yml: model_type is 'SRModel'; only a ClassPruningModel",
        ),
        ({'datasets': {}}, r'tiny_test\.yml: datasets is missing'),
        ({'datasets': {'test_1': {'name': 'a'}, 'test_2': {'name': 'a'}}}, r'tiny_test: two datasets are called a x2'),
    ],
)
def test_option_files_with_nothing_to_compare(
    changes: dict[str, Any], message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(options | changes, tmp_path)


def test_a_dataset_without_true_images_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    options['datasets']['test_1'] = {
        'name': 'plain', 'type': 'SingleImageDataset', 'dataroot_lq': str(tmp_path / 'lq'),
        'io_backend': {'type': 'disk'},
    }  # fmt: skip
    with pytest.raises(SystemExit, match='gives no gt'):
        run(options, tmp_path, '--budgets', '0.6')


def test_the_command_names_a_missing_option_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(f'-opt {tmp_path / "absent.yml"}: No such file')):
        leaderboard.main(['-opt', str(tmp_path / 'absent.yml'), '--out', str(tmp_path)])
