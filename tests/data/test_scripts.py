"""The commands of datasets/, from another working directory."""

import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize('name', ['make_lr', 'extract_subimages', 'make_lmdb', 'make_demo_set'])
def test_help_and_bad_input(name: str, tmp_path: Path, run, source: Path) -> None:
    script = source / 'datasets' / f'{name}.py'
    assert 'usage' in run(sys.executable, script, '--help', cwd=tmp_path, PYTHONPATH=str(source)).stdout
    if name != 'make_demo_set':
        result = run(sys.executable, script, 'none', 'out.lmdb', cwd=tmp_path, code=1, PYTHONPATH=str(source))
        assert f'{name}.py: none: no such folder' in result.stderr or '{scale}' in result.stderr
        assert 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())


def test_from_photographs_to_a_training_lmdb(tmp_path: Path, write_photographs, run, source: Path) -> None:
    write_photographs('datasets/My/HR', a=(60, 84), b=(61, 50))
    commands = [
        ('make_lr', 'datasets/My/HR', 'datasets/My/LR/X{scale}', '--suffix', 'x{scale}', '--scale', '2', '4'),
        ('extract_subimages', 'datasets/My/HR', 'datasets/My/HR_sub', '--crop-size', '48', '--step', '24'),
        (
            'extract_subimages', 'datasets/My/LR/X4', 'datasets/My/LR/X4_sub',
            '--crop-size', '48', '--step', '24', '--scale', '4',
        ),
        ('make_lmdb', 'datasets/My/HR_sub', 'datasets/My/HR_sub.lmdb'),
        ('make_lmdb', 'datasets/My/LR/X4_sub', 'datasets/My/LR_X4_sub.lmdb'),
    ]  # fmt: skip
    for _ in range(2):  # the second time finds everything done
        for name, *arguments in commands:
            run(sys.executable, source / f'datasets/{name}.py', *arguments, cwd=tmp_path, PYTHONPATH=str(source))
    names = [
        [line.split()[0] for line in (tmp_path / 'datasets/My' / folder / 'meta_info.txt').read_text().splitlines()]
        for folder in ('HR_sub.lmdb', 'LR_X4_sub.lmdb')
    ]
    assert names[0] == names[1] and names[0][0] == 'a_s001.png' and len(names[0]) == 8


def test_demo_set_below_the_working_directory(tmp_path: Path, run, source: Path) -> None:
    run(sys.executable, source / 'datasets/make_demo_set.py', cwd=tmp_path, PYTHONPATH=str(source))
    assert (tmp_path / 'datasets/demo/test_HR/chelsea.png').is_file()
