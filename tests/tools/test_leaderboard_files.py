"""What the leaderboard keeps: records that survive a kill and serve several processes, tables, pages, README."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import leaderboards
import numpy as np
import pytest
from leaderboards import run

from cp_basicsr.options import OptionError
from cp_basicsr.tools import leaderboard
from cp_basicsr.tools.leaderboards import testing
from cp_basicsr.tools.leaderboards.measuring import Plan, measure
from cp_basicsr.tools.leaderboards.results import Row, Table, compare_with_static
from cp_basicsr.tools.leaderboards.summary import summary_as_markdown
from cp_basicsr.tools.ranks import own_first, place

pytestmark = pytest.mark.usefixtures('one_thread')
QUICK = ('--budgets', '0.6', '--controls', 'edge')


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    leaderboards.tiny_network(tmp_path)
    return leaderboards.test_file_options(tmp_path)


def records_of(folder: Path) -> list[Path]:
    return sorted((folder / 'out/records').rglob('*.json'))


def without_seconds(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**table, 'rows': [{**row, 'seconds': None} for row in table['rows']]} for table in tables]


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are loaded from now on, one for each time."""
    from cp_basicsr.tools.leaderboards import measuring

    loaded: list[str] = []
    load_image = measuring.load_image

    def counted(images: Any, number: int, load: Any) -> Any:
        subject = load_image(images, number, load)
        loaded.append(subject.name)
        return subject

    monkeypatch.setattr(measuring, 'load_image', counted)
    return loaded


def test_what_is_recorded_is_not_measured_again(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(options, tmp_path, *QUICK)
    assert len(records_of(tmp_path)) == 2
    loaded = count_runs(monkeypatch)
    assert run(options, tmp_path, *QUICK) == first and loaded == []
    # an image that is missing, and a further control, are added
    records_of(tmp_path)[1].unlink()
    assert without_seconds(run(options, tmp_path, *QUICK)) == without_seconds(first) and loaded == ['image1']
    rows = run(options, tmp_path, '--budgets', '0.6', '--controls', 'edge', 'random')[0]['rows']
    assert [row['kind'] for row in rows[3:]] == ['routed', 'edge', 'random']
    assert loaded == ['image1', 'image0', 'image1']
    assert rows[:4] == run(options, tmp_path, *QUICK)[0]['rows'][:4]


def test_another_checkpoint_starts_anew(options: dict[str, Any], tmp_path: Path) -> None:
    first = run(options, tmp_path, *QUICK)
    options['val']['tile'] = {'size': 16}
    second = run(options, tmp_path, *QUICK)
    assert len(records_of(tmp_path)) == 4
    assert without_seconds(first) != without_seconds(second)


def test_a_killed_run_goes_on(options: dict[str, Any], tmp_path: Path) -> None:
    """Killed without warning after its first record; the rest is measured later, and no half file is left."""
    path = leaderboards.write_options(options, tmp_path / 'tiny_test.yml')
    command = [sys.executable, '-m', 'cp_basicsr.tools.leaderboard', '-opt', path, '--out', tmp_path / 'out', *QUICK]
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not records_of(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    kept = {path: path.read_bytes() for path in records_of(tmp_path)}
    assert kept, process.stderr.read().decode()[-2000:]
    for content in kept.values():
        json.loads(content)
    killed = run(options, tmp_path, *QUICK)
    assert all(path.read_bytes() == content for path, content in kept.items())
    for path in records_of(tmp_path):
        path.unlink()
    assert without_seconds(run(options, tmp_path, *QUICK)) == without_seconds(killed)


def test_two_processes_share_the_images(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins with its own images. What the other has done is not done again, and what it left undone is done."""
    loaded = count_runs(monkeypatch)
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(testing, 'measure', measure_one_and_die)
        run(options, tmp_path, *QUICK)
    assert loaded == ['image1'] and [path.name for path in records_of(tmp_path)] == ['00001_image1.json']
    monkeypatch.setenv('RANK', '0')
    shared = run(options, tmp_path, *QUICK)
    assert loaded == ['image1', 'image0']
    for name in ('RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name)
    for path in records_of(tmp_path):
        path.unlink()
    assert without_seconds(run(options, tmp_path, *QUICK)) == without_seconds(shared)


def measure_one_and_die(images: Any, load: Any, plan: Plan, records: Any, *arguments: Any) -> None:
    """`measure` of a process that dies as soon as its first record is written."""
    write = records.write

    def write_and_die(index: int, record: Any) -> None:
        write(index, record)
        raise KeyboardInterrupt

    records.write = write_and_die
    measure(images, load, plan, records, *arguments)


def test_the_first_images_only(options: dict[str, Any], tmp_path: Path) -> None:
    """The rest can follow later."""
    (table,) = run(options, tmp_path, *QUICK, '--images', '1')
    assert table['images'] == 1 and 'val x2: the first 1 of 2 images only.' in table['notes']
    assert [path.name for path in records_of(tmp_path)] == ['00000_image0.json']
    (table,) = run(options, tmp_path, *QUICK)
    assert table['images'] == 2 and table['notes'] == [] and len(records_of(tmp_path)) == 2


def test_controls_that_choose_over_the_set_are_not_taken_over_from_a_part_of_it(
    options: dict[str, Any], tmp_path: Path
) -> None:
    options['val']['budget_tolerance'] = None
    run(options, tmp_path, *QUICK, '--images', '1')
    (table,) = run(options, tmp_path, *QUICK)
    for path in records_of(tmp_path):
        path.unlink()
    assert without_seconds([table]) == without_seconds(run(options, tmp_path, *QUICK))


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        ({}, (0, 1)),
        ({'RANK': '2', 'WORLD_SIZE': '4'}, (2, 4)),
        ({'SLURM_PROCID': '1', 'SLURM_STEP_NUM_TASKS': '3'}, (1, 3)),
        ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '3'}, (0, 1)),  # a batch script itself
        ({'RANK': '0', 'WORLD_SIZE': '2', 'SLURM_PROCID': '1', 'SLURM_STEP_NUM_TASKS': '3'}, (0, 2)),
    ],
)
def test_place(environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == expected


def test_every_process_sees_every_item_its_own_first() -> None:
    assert own_first(5, 0, 1) == [0, 1, 2, 3, 4]
    assert own_first(7, 1, 3) == [1, 4, 6, 5, 3, 2, 0]
    assert own_first(1, 1, 2) == [0]


def row(name: str, kind: str, macs: float, psnr: float, budget: float | None = None) -> Row:
    return Row('file', name, kind, {'psnr_y': psnr}, macs, 0.5, budget, ['1:4', '2:4', '4:4'], [0.25, 0.25, 0.5])


def hand_made_table() -> Table:
    rows = [
        row('dense', 'static', 1.0, 33.0),
        row('static 2:4', 'static', 0.5, 32.0),
        row('static 1:4', 'static', 0.25, 31.0),
        row('routed 0.6', 'routed', 0.61, 32.62, 0.6),
        row('oracle 0.6', 'oracle', 0.6, 33.0, 0.6),
        row('edge 0.6', 'edge', 0.6, 32.1, 0.6),
        row('routed 0.3', 'routed', 0.3, 31.3, 0.3),
    ]
    compare_with_static(rows, 'psnr_y')
    return Table('Set5 x2', 5, 'psnr_y', 'image', ['a processor, 2 threads, float32'], {'file': 16}, rows)


def test_gains_over_static_and_the_gap_by_hand() -> None:
    """Static pruning at 61 % of the MACs: 32 + 0.11 / 0.5; at 60 %: 32.2; at 30 %: 31 + 0.05 / 0.25."""
    rows = {row.name: row for row in hand_made_table().rows}
    assert rows['routed 0.6'].over_static == pytest.approx(0.4)
    assert rows['oracle 0.6'].over_static == pytest.approx(0.8)
    assert rows['routed 0.6'].gap_closed == pytest.approx(0.5)
    assert rows['edge 0.6'].gap_closed == pytest.approx(-0.125)
    assert rows['routed 0.3'].over_static == pytest.approx(0.1) and rows['routed 0.3'].gap_closed is None
    assert rows['routed 0.6'].budget_error == pytest.approx(0.01)
    assert rows['edge 0.6'].budget_error is None and rows['dense'].over_static is None
    assert rows['routed 0.6'].below_dense == pytest.approx(33 - 32.62) and rows['dense'].below_dense is None


def test_markdown_json_and_readme(tmp_path: Path) -> None:
    table = hand_made_table()
    results, readme = tmp_path / 'results.json', tmp_path / 'README.md'
    results.write_text(json.dumps({'tables': [table.as_json()]}))
    readme.write_text('# Title\n\n<!-- tables: begin -->\nold\n<!-- tables: end -->\n\nmore\n')
    command = ['--readme', str(readme), '--results', str(results)]
    leaderboard.main(command)
    text = readme.read_text()
    assert text.startswith('# Title\n\n<!-- tables: begin -->\n### Set5 x2, file\n') and 'old' not in text
    assert text.endswith('|\n<!-- tables: end -->\n\nmore\n')
    assert '5 images; a processor, 2 threads, float32; tiles: 16 x 16 lq pixels; compared by PSNR-Y.' in text
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']
    head = ['', 'PSNR-Y', 'MACs %', 's / image', 'tiles at 1:4 / 2:4 / 4:4, %', 'below dense, dB', 'budget error']
    assert lines[0] == [*head, 'over static, dB', 'gap closed, %']
    assert lines[2] == ['dense', '33.000', '100.0', '0.500', '25 / 25 / 50', '', '', '', '']
    assert lines[5] == ['routed 0.6', '32.620', '61.0', '0.500', '25 / 25 / 50', '0.380', '+1.0', '+0.400', '50']
    leaderboard.main(command)
    assert readme.read_text() == text


def test_the_summary_names_what_half_the_work_costs_and_whether_the_aim_is_reached() -> None:
    """Static at 50 % of the MACs: on the line from 32 dB at 40 % to 32.3 dB at 60 %."""

    def row(name: str, kind: str, psnr: float, macs: float, budget: float | None = None) -> Row:
        return Row('test_net', name, kind, {'psnr_y': psnr, 'ssim': 0.9}, macs, 0.1, budget, ['1:4', '4:4'], [0.5, 0.5])

    rows = [row('dense', 'static', 32.5, 1.0), row('static 2:4', 'static', 32.3, 0.6), row('1:4', 'static', 32.0, 0.4)]
    rows += [row('routed 0.5', 'routed', 32.4796, 0.5, 0.5), row('oracle 0.5', 'oracle', 32.51, 0.5, 0.5)]
    rows += [row('edge 0.5', 'edge', 32.4, 0.5, 0.5), row('routed 0.4', 'routed', 32.449, 0.402, 0.4)]
    compare_with_static(rows, 'psnr_y')
    table = Table('Set5 x2', 5, 'psnr_y', 'image', ['a processor'], {'test_net': 16}, rows)
    head, _, line = summary_as_markdown([table, hand_made_table()]).splitlines()
    cells = dict(zip(*([cell.strip() for cell in text.split('|')[1:-1]] for text in (head, line)), strict=True))
    assert cells == {
        'set': 'Set5 x2', 'images': '5', 'network': 'net', 'dense, dB': '32.500 (PSNR-Y)',
        'routed 0.5 (MACs %)': '**0.020** (50.0)', 'static at these MACs': '0.350',
        'random': '', 'edge': '0.100', 'informed': '', 'oracle': '-0.010',
        'routed 0.4 (MACs %)': '0.051 (40.2)',
    }  # fmt: skip


def test_summary_and_tables_go_to_their_places_of_several_files(tmp_path: Path) -> None:
    row = dict(file='net', quality={'psnr_y': 32.5}, macs_share=0.5, seconds=0.1, labels=['1:4'], usage=[1.0])
    rows = [Row(name='dense', kind='static', budget=None, **row), Row(name='routed', kind='routed', budget=0.5, **row)]
    table = Table('Set5 x2', 5, 'psnr_y', 'image', ['a processor'], {'net': 16}, rows)
    compare_with_static(rows, 'psnr_y')
    results, whole, brief = tmp_path / 'results.json', tmp_path / 'tables.md', tmp_path / 'README.md'
    results.write_text(json.dumps({'tables': [table.as_json()]}))
    places = {name: f'<!-- {name}: begin -->\n<!-- {name}: end -->\n' for name in ('summary', 'tables')}
    whole.write_text(places['tables'] + 'between\n' + places['summary'])
    brief.write_text(places['summary'])
    leaderboard.main(['--readme', str(whole), str(brief), '--results', str(results)])
    summary = brief.read_text()
    assert summary.count('| Set5 x2 |') == 1 and '### ' not in summary
    tables, _, after = whole.read_text().partition('between\n')
    assert '### Set5 x2, net\n' in tables and after == summary


MARKERS = BEGIN, END = '<!-- tables: begin -->', '<!-- tables: end -->'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            f'nothing, not even {BEGIN} and {END} as lines',
            'has no place for results; write two lines into it: <!-- summary: begin --> and <!-- summary',
        ),
        *((text, f'needs one line {BEGIN}') for text in (f'{END}\n{BEGIN}', BEGIN, END, '\n'.join(2 * MARKERS))),
    ],
)
def test_a_readme_without_markers_is_left_alone(text: str, message: str, tmp_path: Path) -> None:
    results, readme = tmp_path / 'results.json', tmp_path / 'README.md'
    results.write_text('{"tables": []}')
    readme.write_text(text)
    with pytest.raises(SystemExit, match=rf'README\.md {message}'):
        leaderboard.main(['--readme', str(readme), '--results', str(results)])
    assert readme.read_text() == text


def test_a_readme_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / 'results.json').write_text('{"tables": []}')
    with pytest.raises(SystemExit, match=r'absent\.md: No such file or directory\. Give a Markdown file with markers'):
        leaderboard.main(['--readme', str(tmp_path / 'absent.md'), '--results', str(tmp_path / 'results.json')])


def test_pages_and_seconds_timed_apart(options: dict[str, Any], tmp_path: Path) -> None:
    (table,) = run(options, tmp_path, *QUICK, '--pages', '1', '--time', '1')
    folder = tmp_path / 'out/pages/tiny_test/val_x2'
    assert sorted(path.name for path in folder.iterdir()) == ['image0.png', 'index.md']
    index = (folder / 'index.md').read_text()
    assert '](image0.png)' in index and re.search(r'[56]\d\.\d % of the dense MACs', index)
    page = cv2.imread(str(folder / 'image0.png'))
    assert page.shape[1] > 1000 and len(np.unique(page.reshape(-1, 3), axis=0)) > 100
    assert any('fastest of 3 runs, mean over the first 1 image' in note for note in table['notes'])
    timed = [json.loads(path.read_text())['timed'] for path in records_of(tmp_path)]
    assert timed[0].keys() == {'level 0', 'level 1', 'level 2', 'routed 0.6', 'edge 0.6'} and timed[1] == {}
    assert [row['seconds'] for row in table['rows']] == [
        timed[0][key] for key in ('level 2', 'level 1', 'level 0', 'routed 0.6', 'edge 0.6')
    ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out', 'x'], '-opt and --out are needed'),
        (['-opt', 'x'], '-opt and --out are needed'),
        (['--readme', 'x'], '-opt and --out are needed'),
        (['-opt', 'x', '--out', 'y', '--images', '0'], "--images: '0'; allowed: whole numbers from 1"),
        (['-opt', 'x', '--out', 'y', '--pages', '1', '--protocol', 'classsr'], '--pages needs --protocol image'),
    ],
)
def test_the_command_says_what_it_needs(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        leaderboard.main(arguments)
    assert message in capsys.readouterr().err


def test_another_precision_starts_anew_and_is_named(options: dict[str, Any], tmp_path: Path) -> None:
    assert 'float32' in run(options, tmp_path, *QUICK)[0]['machine'][0]
    options['val']['precision'] = 'bf16'
    (table,) = run(options, tmp_path, *QUICK)
    assert len(records_of(tmp_path)) == 4 and ', bfloat16, ' in table['machine'][0]


def test_no_page_is_drawn_where_no_budget_is_in_reach(options: dict[str, Any], tmp_path: Path) -> None:
    options['network_g']['sparsity'] |= {'levels': [3, 4]}
    options['path'] = {}
    (table,) = run(options, tmp_path, '--pages', '1')
    assert 'Out of reach: budget 0.75, ' in table['notes'][0] and not (tmp_path / 'out/pages').exists()


def test_gray_and_colour_images_of_one_name_are_refused() -> None:
    gray = hand_made_table()
    gray.headline = 'psnr_gray'
    with pytest.raises(OptionError, match=r'Dataset Set5 x2 is compared by psnr_y in one .* psnr_gray in another'):
        hand_made_table().join(gray)
