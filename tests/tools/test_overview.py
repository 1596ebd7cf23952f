"""The picture at the head of the README: of a shipped network, photographs of scikit-image and a result file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cp_basicsr import load
from cp_basicsr.data.demo_set import make_demo_set
from cp_basicsr.loading import shipped_checkpoints
from cp_basicsr.options import OptionError
from cp_basicsr.tools import leaderboard, overview
from cp_basicsr.tools.leaderboards.results import Row, Table

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data')
    make_demo_set(folder / overview.DATA)
    return folder


@pytest.fixture
def here(demo_set: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(demo_set)
    return demo_set


def table_of(*seconds: float) -> Table:
    rows = [Row('x', f'static {n}:8', 'static', {'psnr_rgb': 30 + n / 8}, n / 8, seconds[0] * n) for n in (1, 4, 8)]
    rows += [Row('x', 'routed 0.5', 'routed', {'psnr_rgb': 30.4}, 0.5, seconds[0] * 5, 0.5)]
    return Table('scikit-image sigma 25', 6, 'psnr_rgb', 'image', ['a processor'], {'x': 16}, rows)


@pytest.mark.parametrize('model', sorted(shipped_checkpoints()))
def test_every_shipped_network_can_be_tested_on_the_photographs(model: str, here: Path) -> None:
    from cp_basicsr.tools.leaderboards.networks import read_test_options

    (here / 'test.yml').write_text(yaml.safe_dump(overview.options_for(model)))
    opt = read_test_options(here / 'test.yml')
    (block,) = opt['datasets'].values()
    roots = [Path(value) for key, value in block.items() if key.startswith('dataroot_')]
    assert roots and all(sorted(root.iterdir()) for root in roots)
    assert Path(opt['path']['pretrain_network_g']) == shipped_checkpoints()[model]


def test_the_photograph_is_what_the_network_makes_of_it(here: Path) -> None:
    (here / 'test.yml').write_text(yaml.safe_dump(overview.options_for('srvgg_small_color_dn')))
    shown = overview.restore_one(here / 'test.yml', 'chelsea', 0.5)
    clean = np.asarray(Image.open(overview.DATA / 'test_HR/chelsea.png')).astype(float)
    noise, left = (np.sqrt(np.mean((image - clean) ** 2)) for image in (shown.given, shown.restored))
    assert noise == pytest.approx(25, abs=2) and left < noise / 2.5
    again = load('srvgg_small_color_dn').restore(shown.given, budget=0.5)
    assert shown.restoration.levels.shape == again.levels.shape
    assert shown.restoration.macs_share == pytest.approx(0.5, abs=0.04)
    with pytest.raises(OptionError, match="--photograph is 'chelsy'; Did you mean 'chelsea'\\?"):
        overview.restore_one(here / 'test.yml', 'chelsy', 0.5)


def test_the_command_measures_and_draws(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked = {}

    def run(files: Any, out: Path, settings: Any) -> list[Table]:
        asked.update(files=files, out=out, timed=settings.timed)
        return [table_of(0.01)]

    monkeypatch.setattr(leaderboard, 'run', run)
    overview.main(['-o', 'pictures/head.jpg', '--photograph', 'gravel', '--time', '2'])
    assert asked == {'files': [overview.RESULTS / 'srvgg_small_color_dn.yml'], 'out': overview.RESULTS, 'timed': 2}
    assert capsys.readouterr().out == 'pictures/head.jpg\n'
    with Image.open('pictures/head.jpg') as image:
        assert image.size == (1664, 533)
        assert np.asarray(image).std(axis=(0, 1)).min() > 30
    (path,) = Path('pictures').iterdir()
    assert path.stat().st_size < 400_000


def test_the_picture_in_the_readme_is_there_and_small(source: Path) -> None:
    picture = source / 'cp_basicsr/pictures/overview.jpg'
    assert picture.relative_to(source).as_posix() in (source / 'README.md').read_text(encoding='utf-8')
    assert picture.stat().st_size < 400_000
