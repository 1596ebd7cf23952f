"""ClassSR's patches and its figures, and the published ones."""

import re
from pathlib import Path
from typing import Any

import leaderboards
import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.srresnet_arch import MSRResNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.metrics import calculate_psnr
from basicsr.utils import tensor2img
from leaderboards import run
from training import training_options, validation_loader

from cp_basicsr.tools.leaderboards.published import published_rows

SIZE = (70, 95)  # two rows and three columns of patches, and a rest of 10 and 7 pixels
ROWS, COLUMNS = 2, 3


@pytest.fixture
def net(tmp_path: Path) -> Any:
    return leaderboards.tiny_network(tmp_path, size=(72, 96))


def combined(patches: list[np.ndarray], scale: int) -> np.ndarray:
    """Patches put together pixel by pixel: the mean where two lie, and at corners of four their mean of means."""
    size, step = 32 * scale, 28 * scale
    height, width = (ROWS - 1) * step + size, (COLUMNS - 1) * step + size
    total, count = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for index, patch in enumerate(patches):
        top, left = index // COLUMNS * step, index % COLUMNS * step
        total[top : top + size, left : left + size] += patch
        count[top : top + size, left : left + size] += 1
    return total / count


def test_patches_are_cut_restored_and_put_together_as_classsr_does(net: Any, tmp_path: Path, one_thread: None) -> None:
    (table,) = run(leaderboards.test_file_options(tmp_path), tmp_path, '--protocol', 'classsr', '--budgets', '0.9')
    assert table['headline'] == 'psnr_rgb' and table['protocol'] == 'classsr'
    rows = table['rows']
    height, width = 28 * (ROWS - 1) + 32, 28 * (COLUMNS - 1) + 32
    for row, level in zip(rows[:3], (-1, 1, 0), strict=True):
        plain, psnr = net.bake(level), []
        for data in validation_loader(training_options(tmp_path)):
            lq, gt = data['lq'], tensor2img(data['gt'])
            with torch.no_grad():
                patches = [
                    tensor2img(plain(lq[..., 28 * i : 28 * i + 32, 28 * j : 28 * j + 32]))
                    for i in range(ROWS)
                    for j in range(COLUMNS)
                ]
            psnr.append(calculate_psnr(combined(patches, 2), gt[: 2 * height, : 2 * width], crop_border=2))
        assert row['quality']['psnr_rgb'] == pytest.approx(np.mean(psnr), rel=1e-4)
        patch_macs = net.macs((3, 32, 32)).level(level)
        assert row['flops'] == pytest.approx(2 * patch_macs)
        assert row['flops_share'] == pytest.approx(patch_macs / net.macs((3, 32, 32)).dense)
        assert row['macs_share'] == pytest.approx(ROWS * COLUMNS * patch_macs / net.macs((3, height, width)).dense)
    overlap = rows[0]['macs_share']
    assert overlap == pytest.approx(ROWS * COLUMNS * 32**2 / (height * width), rel=0.01)
    for row in rows[3:]:
        assert row['macs_share'] <= 0.9 + 1 / 12  # one patch of twelve
    assert '| FLOPs (M) | FLOPs % |' in (tmp_path / 'out/results.md').read_text()


def test_images_smaller_than_a_patch_are_named(net: Any, tmp_path: Path) -> None:
    for side, scale in (('gt', 2), ('lq', 1)):
        import cv2

        path = tmp_path / side / 'image1.png'
        cv2.imwrite(str(path), cv2.imread(str(path))[: 30 * scale])
    with pytest.raises(SystemExit, match=r'Image image1 is 96 x 30 lq pixels, smaller than a patch of 32'):
        run(leaderboards.test_file_options(tmp_path), tmp_path, '--protocol', 'classsr', '--budgets', '0.9')


def quality_of(rows: list[Any]) -> dict[str, float]:
    return {row.name: next(iter(row.quality.values())) for row in rows}


def test_published_figures_of_the_same_network_and_set() -> None:
    rows = published_rows(EDSR, {'num_block': 16, 'upscale': 4}, 'bsd100', 100, 4)
    assert quality_of(rows)['one-shot 2:4 + fine-tuning'] == 27.55
    assert {row.kind for row in rows} == {'published'} and all(row.convention for row in rows)
    assert rows[1].macs_share == pytest.approx(58.2 / 114.5, abs=1e-3)
    rows = published_rows(MSRResNet, {'upscale': 4}, 'Test8K', 100, 4)
    assert [row.name for row in rows] == ['dense', 'ClassSR', 'ARM-M', 'ARM-S']
    assert rows[1].flops_share == 0.52 and rows[1].macs_share is None
    gray = {'num_in_ch': 1, 'num_out_ch': 1, 'num_conv': 15, 'upscale': 1}
    assert quality_of(published_rows(SRVGGNetCompact, gray, 'Set12', 12, 1, 50)) == {'DnCNN': 27.17}


@pytest.mark.parametrize(
    'case',
    [
        (EDSR, {'num_block': 32}, 'B100', 100, 4),  # another variant
        (EDSR, {'num_block': 16}, 'B100', 99, 4),  # another set of that name
        (EDSR, {'num_block': 16}, 'B100', 100, 2),  # another scale
        (EDSR, {'num_block': 16}, 'mine', 100, 4),
        (SRVGGNetCompact, {'num_in_ch': 1, 'num_conv': 15, 'upscale': 1}, 'Set12', 12, 1, 30),  # another sigma
    ],
)
def test_nothing_is_published_of_others(case: tuple[Any, ...]) -> None:
    assert published_rows(*case) == []


def test_every_published_row_names_known_sets_and_metrics() -> None:
    from cp_basicsr.tools.leaderboards.markdown import METRICS
    from cp_basicsr.tools.leaderboards.published import _figures

    figures = _figures()
    for table in figures['tables']:
        assert table['metric'] in METRICS and re.search('PSNR|measured', table['convention'])
        for row in table['rows']:
            assert row.keys() - {'name', 'macs', 'flops'} <= figures['sets'].keys(), row


def test_patches_are_restored_in_the_precision_asked_for(net: Any, tmp_path: Path, one_thread: None) -> None:
    options, arguments = leaderboards.test_file_options(tmp_path), ('--protocol', 'classsr', '--budgets', '0.9')
    full = [row['quality']['psnr_rgb'] for row in run(options, tmp_path, *arguments)[0]['rows']]
    options['val']['precision'] = 'bf16'
    half = [row['quality']['psnr_rgb'] for row in run(options, tmp_path, *arguments)[0]['rows']]
    # What of a sparse level computes in bf16 is for the engine to say; the dense one does, alone and routed.
    assert half == pytest.approx(full, abs=0.05) and half[0] != full[0] and half[3:] != full[3:]
