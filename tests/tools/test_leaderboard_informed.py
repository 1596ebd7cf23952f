"""The control `informed`: what it knows, worked out from plain networks; what it chooses, by hand; old records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import leaderboards
import numpy as np
import pytest
import torch
from leaderboards import run
from training import training_options, validation_loader

from cp_basicsr.tools.leaderboards.measuring import control_levels
from cp_basicsr.tools.leaderboards.records import ImageRecord, Records, RunRecord
from cp_basicsr.tools.leaderboards.results import Row, compare_with_static
from cp_basicsr.tools.leaderboards.subject import WholeImage

pytestmark = pytest.mark.usefixtures('one_thread')
DEFAULT = ('--budgets', '0.6')
ASKED = (*DEFAULT, '--controls', 'random', 'oracle', 'edge', 'informed')
TILE, SCALE = 8, 2


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / 'out/records').rglob('*.json'))]


def forget_distances(folder: Path) -> None:
    """Make the records those of a version that did not measure distances."""
    for path in (folder / 'out/records').rglob('*.json'):
        record = json.loads(path.read_text())
        del record['distances']
        path.write_text(json.dumps(record))


def saturate(folder: Path) -> None:
    """Black and white in the images to restore, so that outputs leave [0, 1] and have to be clamped."""
    for path in (folder / 'lq').iterdir():
        lq = cv2.imread(str(path)).astype(np.float32)
        cv2.imwrite(str(path), (128 + 4 * (lq - 128)).clip(0, 255).astype(np.uint8))


def images_of(
    folder: Path, net: Any, restore: Callable[[Any, torch.Tensor], np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """By name the true image and then what `restore` makes of lq with the plain network of each level."""
    nets = [net.bake(level) for level in range(3)]
    with torch.no_grad():
        return {
            Path(data['lq_path'][0]).stem: [
                data['gt'][0].double().numpy(),
                *(restore(plain, data['lq']) for plain in nets),
            ]
            for data in validation_loader(training_options(folder))
        }


def tile_errors(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Of Y in [0, 1], tile by tile, without a border of 2 pixels."""
    y = np.tensordot([65.481 / 255, 128.553 / 255, 24.966 / 255], one.clip(0, 1) - other.clip(0, 1), axes=1) ** 2
    counted = np.zeros_like(y)
    counted[SCALE:-SCALE, SCALE:-SCALE] = y[SCALE:-SCALE, SCALE:-SCALE]
    side = TILE * SCALE
    return [
        counted[top : top + side, left : left + side].mean()
        for top in range(0, y.shape[0], side)
        for left in range(0, y.shape[1], side)
    ]


def test_errors_and_distances_of_plain_networks(tmp_path: Path) -> None:
    net = leaderboards.tiny_network(tmp_path)
    saturate(tmp_path)
    run(leaderboards.test_file_options(tmp_path), tmp_path, *DEFAULT, '--controls')
    images = images_of(tmp_path, net, lambda plain, lq: plain(lq)[0].double().numpy())
    records = records_of(tmp_path)
    assert len(records) == len(images) == 2
    for record in records:
        gt, *outputs = images[record['image']]
        assert outputs[-1].min() < 0 and outputs[-1].max() > 1
        for level, output in enumerate(outputs):
            assert record['errors'][str(level)] == pytest.approx(tile_errors(output, gt), rel=1e-3, abs=1e-9)
            expected = tile_errors(output, outputs[-1])
            assert record['distances'][str(level)] == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert min(record['distances']['0']) > 1e-6 and set(record['distances']['2']) == {0}


def test_errors_and_distances_of_patches(tmp_path: Path) -> None:
    """ClassSR's protocol: 32 x 32 with stride 28, all channels, no border."""
    net = leaderboards.tiny_network(tmp_path)  # 64 x 80: two rows and two columns of patches
    saturate(tmp_path)
    arguments = ('--budgets', '0.9', '--controls', '--protocol', 'classsr')
    run(leaderboards.test_file_options(tmp_path), tmp_path, *arguments)
    corners = [(top, left) for top in (0, 28) for left in (0, 28)]

    def patches(plain: Any, lq: torch.Tensor) -> np.ndarray:
        cut = [lq[..., top : top + 32, left : left + 32] for top, left in corners]
        return plain(torch.cat(cut)).double().numpy()

    records, images = records_of(tmp_path), images_of(tmp_path, net, patches)
    assert len(records) == len(images) == 2
    for record in records:
        gt, *outputs = images[record['image']]
        assert outputs[-1].min() < 0 and outputs[-1].max() > 1
        truth = np.stack([gt[:, 2 * top : 2 * top + 64, 2 * left : 2 * left + 64] for top, left in corners])
        for level, output in enumerate(outputs):
            for name, other in (('errors', truth), ('distances', outputs[-1])):
                expected = ((output.clip(0, 1) - other.clip(0, 1)) ** 2).mean(axis=(1, 2, 3)).tolist()
                assert record[name][str(level)] == pytest.approx(expected, rel=1e-3, abs=1e-9), name


def hand_made(errors: list[list[float]], distances: list[list[float]], spent: float) -> ImageRecord:
    """Two tiles, levels of 25 %, 50 % and all MACs; a routed row that spends `spent`."""
    return ImageRecord(
        costs=[0.25, 0.5, 1.0],
        weights=[0.5, 0.5],
        errors={str(k): values for k, values in enumerate(errors)},
        distances={str(k): values for k, values in enumerate(distances)},
        runs={'routed 0.6': RunRecord({}, spent, 0.1, [0.5, 0, 0.5], [0.5, 0, 0.5])},
    )


def test_by_what_the_outputs_differ_not_by_the_truth() -> None:
    """The densest level is worse on the first tile by luck: the oracle knows, one who saw the outputs does not."""
    record = hand_made([[0.1, 0.5], [0.2, 0.4], [0.3, 0.3]], [[0.09, 0.02], [0.03, 0.01], [0, 0]], spent=0.625)
    assert [levels.tolist() for levels in control_levels('oracle', 0.6, [record])] == [[0, 2]]
    assert [levels.tolist() for levels in control_levels('informed', 0.6, [record])] == [[2, 0]]


def test_outputs_that_are_equal_need_no_denser_level() -> None:
    record = hand_made([[0.5, 0.5], [0.4, 0.4], [0.3, 0.3]], [[0, 0.02], [0, 0], [0, 0]], spent=1.0)
    assert [levels.tolist() for levels in control_levels('informed', 0.6, [record])] == [[0, 1]]


def test_images_that_exchange_work_are_weighed_by_their_dense_error() -> None:
    """Distances of the first are twice the second's, but its error is four times as large: less of its PSNR is lost.

    Adding the dense errors of the tiles, as the definition does, changes nothing.
    """
    first = hand_made([[0.5, 0.5], [0.4, 0.4], [0.4, 0.4]], [[0.04, 0.04], [0.04, 0.04], [0, 0]], spent=0.625)
    second = hand_made([[0.1, 0.1], [0.1, 0.1], [0.05, 0.15]], [[0.02, 0.02], [0.02, 0.02], [0, 0]], spent=0.625)
    chosen = [levels.tolist() for levels in control_levels('informed', 0.6, [first, second])]
    assert chosen == [[0, 0], [2, 2]]
    for record in (first, second):
        dense = record.errors['2']
        record.distances = {
            level: [distance + error for distance, error in zip(distances, dense, strict=True)]
            for level, distances in record.distances.items()
        }
    assert [levels.tolist() for levels in control_levels('informed', 0.6, [first, second])] == chosen


def kinds(table: dict[str, Any]) -> list[str]:
    return [row['kind'] for row in table['rows'][3:]]


@pytest.mark.parametrize('val', [{}, {'budget_tolerance': None}])
def test_old_records_are_completed_only_where_it_is_asked_for(
    val: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a table shows of an old record stays to the digit, seconds too; only the new row is added."""
    leaderboards.tiny_network(tmp_path)
    options = leaderboards.test_file_options(tmp_path)
    options['val'] |= val
    restored: list[int | None] = []
    choose = WholeImage.choose

    def counted(self: WholeImage, choice: Any) -> Any:
        restored.append(choice.level)
        return choose(self, choice)

    monkeypatch.setattr(WholeImage, 'choose', counted)
    (table,) = run(options, tmp_path, *DEFAULT)
    new = records_of(tmp_path)
    assert kinds(table) == ['routed', 'random', 'oracle', 'edge']
    assert restored == [2, 1, 0, None] * 2 and len(new) == 2

    forget_distances(tmp_path)
    restored.clear()
    assert run(options, tmp_path, *DEFAULT) == [table] and restored == []
    (asked,) = run(options, tmp_path, *ASKED, '--time', '1')
    assert restored[:6] == [2, 1, 0] * 2
    assert kinds(asked) == ['routed', 'random', 'oracle', 'edge', 'informed']
    for before, after in zip(new, records_of(tmp_path), strict=True):
        assert before['runs'].items() <= after['runs'].items()
        assert after['runs'].keys() - before['runs'].keys() == {'informed 0.6'}
        assert [after[name] for name in ('errors', 'distances')] == [before[name] for name in ('errors', 'distances')]
    restored.clear()
    assert run(options, tmp_path, *ASKED) == [asked] and restored == []


def test_records_with_distances_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaderboards.tiny_network(tmp_path)
    options = leaderboards.test_file_options(tmp_path)
    run(options, tmp_path, *DEFAULT)
    monkeypatch.setattr(WholeImage, 'choose', lambda self, choice: pytest.fail(f'{choice} is run again'))
    (table,) = run(options, tmp_path, *ASKED)
    routed, _, oracle, _, informed = table['rows'][3:]
    assert informed['name'] == 'informed 0.6' and '| informed 0.6 |' in (tmp_path / 'out/results.md').read_text()
    assert informed['macs_share'] <= routed['macs_share'] + 1 / 80  # one tile
    assert informed['quality']['psnr_y'] <= oracle['quality']['psnr_y'] + 0.01


def test_distances_that_another_process_has_measured_meanwhile_are_kept(tmp_path: Path) -> None:
    records = Records(tmp_path, ['image'])
    ours = records.read(0)
    records.write(0, ImageRecord(distances={'0': [0.5], '1': [0.0]}))
    records.write(0, ours)
    assert records.read(0).distances == {'0': [0.5], '1': [0.0]}


def test_the_gap_stays_the_oracles() -> None:
    rows = [
        Row('file', kind, kind, {'psnr_y': psnr}, macs, budget=0.5)
        for kind, macs, psnr in [
            ('static', 1.0, 34.0), ('static', 0.5, 32.0), ('static', 0.25, 31.0),
            ('routed', 0.5, 32.2), ('oracle', 0.5, 32.8), ('informed', 0.5, 32.4),
        ]
    ]  # fmt: skip
    compare_with_static(rows, 'psnr_y')
    gaps = {row.kind: row.gap_closed for row in rows}
    assert gaps == {
        'static': None, 'oracle': None, 'routed': pytest.approx(0.25), 'informed': pytest.approx(0.5)
    }  # fmt: skip
