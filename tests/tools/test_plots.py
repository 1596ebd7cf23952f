"""Plots of a result file and of a training log: that they are there, hold what they should, and are the same again."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from cp_basicsr.options import OptionError
from cp_basicsr.tools import plots
from cp_basicsr.tools.training_log import read_training_log

LOG = """2026-01-01 10:00:00,000 INFO: Stage supernet: iterations 1 to 1200, 9 parameters learn with {} and {}.
2026-01-01 10:00:01,000 INFO: [tiny..][epoch:  0, iter:     500, lr:(1.000e-04,)] \
[eta: 0:01:00, time (data): 0.1 (0.0)] l_pix_dense: 2.0000e-02 mask_flips: 3.0000e-02 
2026-01-01 10:00:02,000 INFO: [tiny..][epoch:  0, iter:   1,000, lr:(1.000e-04,)] \
[eta: 0:01:00, time (data): 0.1 (0.0)] l_pix_dense: 1.0000e-02 mask_flips: 1.0000e-02 
2026-01-01 10:00:03,000 INFO: Validation val/level0
\t # psnr: 30.5000\tBest: 30.5000 @ 1000 iter
\t # ssim: 0.9000\tBest: 0.9000 @ 1000 iter

2026-01-01 10:00:04,000 INFO: Stage classifier: iterations 1201 to 2000, 9 parameters learn with {} and {}.
2026-01-01 10:00:05,000 INFO: [tiny..][epoch:  0, iter:   1,500, lr:(1.000e-04,)] \
[eta: 0:01:00, time (data): 0.1 (0.0)] l_oracle: 4.0000e-01 expected_cost: 5.0000e-01 
2026-01-01 10:00:06,000 INFO: Validation val
\t # psnr: 31.0000\tBest: 31.0000 @ 1500 iter
"""  # noqa: W291  (as BasicSR writes them)


def row(name: str, kind: str, macs: float, psnr: float, **more: object) -> dict:
    known = {'file': 'tiny', 'labels': ['1:4', '4:4'], 'usage': [0.25, 0.75], 'seconds': macs / 2}
    return {**known, 'name': name, 'kind': kind, 'quality': {'psnr_y': psnr}, 'macs_share': macs, **more}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        row('dense', 'static', 1.0, 32.0),
        row('static 1:4', 'static', 0.3, 31.0),
        row('routed 0.5', 'routed', 0.5, 31.8, budget=0.5),
        row('oracle 0.5', 'oracle', 0.5, 31.9, budget=0.5),
        {'file': 'paper', 'name': 'theirs', 'kind': 'published', 'quality': {'psnr_y': 31.5}, 'macs_share': 0.5},
    ]
    table = {
        'dataset': 'Set5 x2', 'images': 5, 'headline': 'psnr_y', 'protocol': 'image', 'machine': ['a processor'],
        'tile': {'tiny': 16}, 'rows': rows, 'dial': [], 'notes': [],
    }  # fmt: skip
    path = tmp_path / 'results.json'
    path.write_text(json.dumps({'tables': [table]}))
    return path


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    path = tmp_path / 'train_tiny.log'
    path.write_text(LOG)
    return path


def texts(svg: Path) -> str:
    """What an SVG says: matplotlib keeps each text as a comment beside its outlines."""
    return '\n'.join(re.findall(r'<!-- (.*?) -->', svg.read_text(), re.DOTALL))


def test_a_result_file_gives_three_plots_in_two_formats(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plots.main([str(results), '-o', str(tmp_path / 'plots')])
    stems = ['Set5_x2_psnr_macs', 'Set5_x2_psnr_seconds', 'Set5_x2_usage']
    names = [f'{stem}.{ending}' for stem in stems for ending in ('png', 'svg')]
    assert sorted(path.name for path in (tmp_path / 'plots').iterdir()) == sorted(names)
    assert capsys.readouterr().out.split() == [str(tmp_path / 'plots' / name) for name in names]
    for stem in stems:
        picture = cv2.imread(str(tmp_path / f'plots/{stem}.png'), cv2.IMREAD_GRAYSCALE)
        assert picture.shape[0] > 500 and len(np.unique(picture)) > 20
    macs, seconds = (texts(tmp_path / f'plots/{stem}.svg') for stem in stems[:2])
    for word in ('static', '1:4', 'dense', 'routed', 'oracle', 'published', 'PSNR-Y, dB', 'MACs'):
        assert word in macs
    assert 'a processor' in seconds and 'routed' in seconds and 'oracle' not in seconds


def test_the_same_results_give_the_same_files(results: Path, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in plots.plot_files([results], tmp_path / 'one')]
    assert first == [path.read_bytes() for path in plots.plot_files([results], tmp_path / 'two')]


def test_curves_of_a_log(log_file: Path) -> None:
    log = read_training_log(log_file)
    assert log.stages == [('supernet', 1), ('classifier', 1201)]
    assert log.losses == {'l_pix_dense': [(500, 0.02), (1000, 0.01)], 'l_oracle': [(1500, 0.4)]}
    assert log.observed == {'mask_flips': [(500, 0.03), (1000, 0.01)], 'expected_cost': [(1500, 0.5)]}
    assert log.validated == {
        'val/level0 psnr': [(1000, 30.5)],
        'val/level0 ssim': [(1000, 0.9)],
        'val psnr': [(1500, 31.0)],
    }


def test_a_log_gives_losses_routing_and_validated_psnr(log_file: Path, tmp_path: Path) -> None:
    plots.main([str(log_file), '-o', str(tmp_path / 'plots')])
    kinds = ('losses', 'routing', 'psnr')
    names = [f'train_tiny_{kind}.{ending}' for kind in kinds for ending in ('png', 'svg')]
    assert sorted(path.name for path in (tmp_path / 'plots').iterdir()) == sorted(names)
    assert 'val psnr' in texts(tmp_path / 'plots/train_tiny_psnr.svg')
    assert 'classifier' in texts(tmp_path / 'plots/train_tiny_losses.svg')


def test_steps_that_a_resumed_run_repeats_count_once(log_file: Path) -> None:
    again = LOG.splitlines()[2].replace('1.0000e-02 mask', '3.0000e-02 mask')
    log_file.write_text(LOG + again + '\n')
    assert read_training_log(log_file).losses['l_pix_dense'] == [(500, 0.02), (1000, 0.03)]


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('empty.log', 'nothing here\n', 'holds no iteration'),
        ('other.json', '{"rows": []}', 'no results.json of this leaderboard'),
        ('broken.json', '{', 'no results.json of this leaderboard'),
    ],
)
def test_other_files_are_refused_by_name(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=rf'{name}.*{message}'):
        plots.main([str(tmp_path / name), '-o', str(tmp_path / 'plots')])
    with pytest.raises(OptionError, match='absent'):
        plots.plot_files([tmp_path / 'absent.log'], tmp_path)
