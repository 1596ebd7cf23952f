"""Runs of `restore`: what is done again, what fails, what is interrupted, how processes share, and what is refused."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import GRAY_X1, at_level, checkpoint, read, same_pixels, scene, write

from cp_basicsr.tools import restore

pytestmark = [pytest.mark.usefixtures('one_thread')]
Restore = Callable[..., None]


@pytest.fixture
def net(tmp_path: Path) -> Any:
    return checkpoint(tmp_path / 'net.pth')


@pytest.fixture
def run_here(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restore:
    """Run the tool in `tmp_path`; the exit status must be `code`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> None:
        with pytest.raises(SystemExit) as ended:
            restore.main(list(arguments))
        assert ended.value.code == code

    return run


USUAL = ('in', '-o', 'out', '--model', 'net.pth', '--level', '0')


def files(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def fill(folder: Path, *names: str, **options: Any) -> None:
    for index, name in enumerate(names):
        write(folder / name, scene(24 + index, 32, **options))


def test_as_a_user_from_another_folder(net: Any, run: Callable, tmp_path: Path) -> None:
    """A subprocess: one picture, a budget, a level map, names that are not ASCII."""
    folder = tmp_path / 'Ünterwegs' / '日本'
    write(folder / 'Straße.png', scene(80, 96))
    command = [sys.executable, '-m', 'cp_basicsr.tools.restore', 'Straße.png', '-o', 'größer', '--map']
    result = run(*command, '--model', '../../net.pth', '--budget', '0.7', '--tile', '8', cwd=folder)
    assert files(folder) == ['Straße.png', 'größer/Straße.png', 'größer/Straße_levels.png']
    assert read(folder / 'größer/Straße.png').shape == (160, 192, 3)
    assert read(folder / 'größer/Straße_levels.png').shape == (184, 192, 3)
    found = re.search(r'1 of 1 restored \(0\.0 MP in .* MP/s, (\d+\.\d) % of the dense MACs\)', result.stderr)
    assert float(found[1]) == pytest.approx(70, abs=2)
    assert 'image/s' in result.stderr and 'MP/s]' in result.stderr


def test_the_level_map_shows_where_each_level_ran(net: Any, run_here: Restore, tmp_path: Path) -> None:
    """A forced level tints all of the picture and has all of the legend's share."""
    write(tmp_path / 'in/a.png', np.full((64, 96, 3), 128, np.uint8))
    maps = []
    for level in ('0', '-1'):
        run_here('in', '-o', f'out{level}', '--model', 'net.pth', '--level', level, '--map')
        maps.append(read(tmp_path / f'out{level}/a_levels.png')[:128].astype(int))
    sparse, dense = (each.mean(axis=(0, 1)) for each in maps)
    assert dense[0] - sparse[0] > 40 and sparse[2] > dense[2], 'violet at the sparsest level, yellow at the densest'


def test_folders_keep_their_structure_and_other_files_stay_out(
    run_here: Restore, tmp_path: Path, log: list[str]
) -> None:
    fill(tmp_path / 'in', 'a.png', 'b/c.PNG', 'b/d/e.tif', '.hidden.png', '.cache/f.png')
    (tmp_path / 'in/notes.txt').write_text('no picture')
    write(tmp_path / 'in/b/animation.gif', scene())
    run_here(*USUAL)
    assert files(tmp_path / 'out') == ['a.png', 'b/c.PNG', 'b/d/e.tif']
    assert any(
        'Files of other kinds are left out: ' in line and '.txt (1)' in line and '.gif (1)' in line for line in log
    )


def test_results_inside_the_folder_are_not_restored_again(run_here: Restore, tmp_path: Path) -> None:
    fill(tmp_path / 'in', 'a.png')
    for _ in range(2):
        run_here('in', '-o', 'in/restored', '--model', 'net.pth', '--level', '0')
    assert files(tmp_path / 'in') == ['a.png', 'restored/a.png']


def test_several_inputs_and_globs(run_here: Restore, tmp_path: Path) -> None:
    fill(tmp_path / 'x', 'a.png', 's/a.png', 's/b.jpg')
    fill(tmp_path / 'y', 'a.png')
    run_here('x', 'y', 'x/s/b.jpg', '-o', 'out', '--model', 'net.pth', '--level', '0')
    assert files(tmp_path / 'out') == ['b.jpg', 'x/a.png', 'x/s/a.png', 'x/s/b.jpg', 'y/a.png']
    run_here('x/**/*.png', '-o', 'globbed', '--model', 'net.pth', '--level', '0')
    assert files(tmp_path / 'globbed') == ['a.png', 's/a.png']
    run_here('x/a.png', '-o', 'one.jpg', '--model', 'net.pth', '--level', '0')
    assert read(tmp_path / 'one.jpg').shape == (48, 64, 3)


def test_done_pictures_are_passed_over_unless_told_otherwise(
    net: Any, run_here: Restore, tmp_path: Path, log: list[str]
) -> None:
    fill(tmp_path / 'in', 'a.png', 'b.png', 'c.png')
    run_here(*USUAL)
    assert '3 of 3 restored' in log[-1]
    (tmp_path / 'out/b.png').unlink()
    done = (tmp_path / 'out/a.png').stat().st_mtime_ns
    time.sleep(0.01)
    write(tmp_path / 'in/c.png', scene(50, 50))  # newer than its result
    run_here(*USUAL)
    assert '2 of 3 restored' in log[-1]
    assert '1 done before with these settings (--overwrite restores them again)' in log[-1]
    assert (tmp_path / 'out/a.png').stat().st_mtime_ns == done
    same_pixels(read(tmp_path / 'out/c.png'), at_level(net, scene(50, 50), 0))
    run_here(*USUAL, '--map')
    assert '3 of 3 restored' in log[-1], 'the level maps were missing'
    run_here(*USUAL, '--overwrite')
    assert '3 of 3 restored' in log[-1]


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tif', '.webp', '.bmp'])
def test_broken_files_are_reported_and_the_rest_go_on(
    suffix: str, run_here: Restore, tmp_path: Path, log: list[str]
) -> None:
    fill(tmp_path / 'in', 'a.png', f'broken{suffix}', 'z.png')
    content = (tmp_path / f'in/broken{suffix}').read_bytes()
    (tmp_path / f'in/broken{suffix}').write_bytes(content[: len(content) // 2])
    (tmp_path / f'in/empty{suffix}').write_bytes(b'')
    (tmp_path / f'in/text{suffix}').write_text('This is text.')
    run_here(*USUAL, code=1)
    assert files(tmp_path / 'out') == ['a.png', 'z.png']
    assert '2 of 5 restored' in log[-1] and '3 failed' in log[-1]
    for name in ('broken', 'empty', 'text'):
        assert re.search(rf'in/{name}{suffix}: is (broken|no PNG, JPEG, TIFF, WebP or BMP picture)', log[-1])
        assert any(entry.startswith(f'ERROR in/{name}{suffix}') for entry in log[:-1])


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
    run_here: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fill(tmp_path / 'in', 'a.png')
    usual = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path and usual(path, mode))  # root may write all
    run_here('in', '-o', 'out/restored', '--model', 'net.pth', code=2)
    assert f'-o out/restored: {tmp_path} cannot be written to; choose another -o.' in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_reported(run_here: Restore, tmp_path: Path, log: list[str]) -> None:
    fill(tmp_path / 'in', 'a.png', 'b/c.png')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/b').write_text('a file where a folder is needed')
    run_here(*USUAL, code=1)
    assert '1 of 2 restored' in log[-1] and 'in/b/c.png: ' in log[-1]


def test_an_interrupted_run_leaves_whole_files_and_goes_on(run_here: Restore, tmp_path: Path, log: list[str]) -> None:
    count = 60
    for index in range(count):
        write(tmp_path / f'in/{index:03}.png', scene(120, 160))
    command = [sys.executable, '-m', 'cp_basicsr.tools.restore', *USUAL]
    settings = os.environ | {'OMP_NUM_THREADS': '1'}
    # What a shell runs in the background ignores Ctrl-C, and so would its children: this test may run there.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while process.poll() is None and len(list(tmp_path.glob('out/*.png'))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    message = process.communicate()[1]
    assert process.returncode == 130, message
    assert re.search(rf'Interrupted; \d+ of {count} restored', message) and 'Traceback' not in message
    done = files(tmp_path / 'out')
    assert 3 <= len(done) < count and all(name.endswith('.png') and name[0] != '.' for name in done)
    for name in done:
        assert read(tmp_path / 'out' / name).shape == (240, 320, 3)
    run_here(*USUAL)
    assert f'{count - len(done)} of {count} restored' in log[-1]
    assert len(files(tmp_path / 'out')) == count


@pytest.mark.parametrize('names', [('RANK', 'WORLD_SIZE'), ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS')])
def test_processes_share_the_pictures(
    names: tuple[str, str], run_here: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """Each takes its part, without waiting for the others; what one has written stays when another dies."""
    pictures = [f'{letter}.png' for letter in 'abcde']
    fill(tmp_path / 'in', *pictures)
    shares = []
    for rank in range(2):
        monkeypatch.setenv(names[0], str(rank))
        monkeypatch.setenv(names[1], '2')
        before = set(files(tmp_path / 'out')) if rank else set()
        run_here(*USUAL)
        shares.append(set(files(tmp_path / 'out')) - before)
        assert f'Rank {rank} of 2: {len(shares[rank])} of {len(shares[rank])} restored' in log[-1]
    assert sorted(map(len, shares)) == [2, 3] and set.union(*shares) == set(pictures)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('absent', '-o', 'out', '--model', 'net.pth'), r'absent: no such file or folder \(looked for it from'),
        (('*.gif', '-o', 'out', '--model', 'net.pth'), r'\*\.gif: no picture there\. Looked for \.png'),
        (('empty', '-o', 'out', '--model', 'net.pth'), r'empty: no picture there'),
        (('notes.txt', '-o', 'out', '--model', 'net.pth'), r'notes\.txt: \.txt is no known format; allowed: \.png'),
        (('in', '-o', 'notes.txt', '--model', 'net.pth'), r'notes\.txt is a file, but more than one picture'),
        (('in', '-o', 'in', '--model', 'net.pth'), r'in/a\.png is one of the pictures and would be overwritten'),
        (('in/a.png', 'x/a.png', '-o', 'out', '--model', 'net.pth'), r'would both be restored to out/a\.png'),
        (('in', '-o', 'out', '--model', 'absent.pth'), r"'absent\.pth' is neither a file .* nor the name of a shipped"),
        (('in', '-o', 'out', '--model', 'plain.pth'), r'plain\.pth is a plain checkpoint .* path\.pretrain_network_g'),
        (('in', '-o', 'out', '--model', 'notes.txt'), r'notes\.txt is not a readable checkpoint'),
        (('in', '-o', 'out', '--model', 'net.pth', '--budget', '0.1'), r'--budget is 0\.1, outside what the levels'),
        (('in', '-o', 'out', '--model', 'net.pth', '--level', '3'), r'level 3 does not exist: .* 0 \(sparsest\) to 2'),
        (('in', '-o', 'out', '--model', 'net.pth', '--tile', '0'), r"--tile: '0' is none of: a number of pixels"),
        (('in', '-o', 'out', '--model', 'net.pth', '--overlap', '-1'), r'overlap is -1; allowed: pixels from 0 up'),
        (('in', '-o', 'out', '--model', 'net.pth', '--precision', 'half'), r"precision is 'half', .* fp32, bf16"),
        (('in', '-o', 'out', '--model', 'net.pth', '--memory', '0'), r'memory is 0\.0; allowed: a number from 0\.1'),
        (('in', '-o', 'out', '--model', 'net.pth', '--level', '0', '--budget', '1'), r'not allowed with argument'),
    ],
)  # fmt: skip
def test_what_cannot_start_is_refused_with_what_to_do(
    arguments: tuple[str, ...], message: str, net: Any, run_here: Restore, tmp_path: Path, capsys: Any
) -> None:
    import torch

    fill(tmp_path / 'in', 'a.png')
    fill(tmp_path / 'x', 'a.png')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.txt').write_text('notes')
    torch.save({'params': net.bake(-1).state_dict()}, tmp_path / 'plain.pth')
    before = files(tmp_path)
    run_here(*arguments, code=2)
    assert re.search(message, capsys.readouterr().err)
    assert files(tmp_path) == before


def test_shipped_checkpoints_are_known_by_name(
    run_here: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from cp_basicsr import loading

    monkeypatch.setattr(loading, 'SHIPPED', tmp_path / 'shipped')
    (tmp_path / 'shipped').mkdir()
    checkpoint(tmp_path / 'shipped/denoise_gray.pth', GRAY_X1)
    fill(tmp_path / 'in', 'a.png')
    run_here('in', '-o', 'out', '--model', 'denoise_gray', '--level', '0')
    assert read(tmp_path / 'out/a.png').shape == (24, 32, 3)
    run_here('in', '-o', 'out', '--model', 'denoise_grey', '--level', '0', '--overwrite', code=2)
    assert "Did you mean 'denoise_gray'? Shipped: denoise_gray." in capsys.readouterr().err


def test_help_fits_a_screen_and_shows_an_example(run: Callable, tmp_path: Path) -> None:
    text = run(sys.executable, '-m', 'cp_basicsr.tools.restore', '--help', cwd=tmp_path, COLUMNS='120').stdout
    assert 20 <= len(text.splitlines()) <= 40 and 'cp-restore photos -o restored --model net_g_latest.pth' in text
