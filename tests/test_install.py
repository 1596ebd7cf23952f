import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from subprocess import CompletedProcess
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

Run = Callable[..., CompletedProcess]


@pytest.fixture(scope='module')
def described(wheel: Path) -> metadata.PathDistribution:
    with ZipFile(wheel) as archive:
        folder = wheel.parent / 'contents'
        archive.extractall(folder)
    return metadata.Distribution.at(next(folder.glob('*.dist-info')))


def test_wheel_registers_our_types_in_a_clean_environment(clean_python: Path, run: Run, tmp_path: Path) -> None:
    code = """
import torch
from importlib.metadata import entry_points
assert 'cp_basicsr' in {point.name for point in entry_points(group='torch.backends')}
import basicsr, cp_basicsr, sys
assert cp_basicsr.__file__.startswith(sys.prefix), cp_basicsr.__file__
from basicsr.utils.registry import MODEL_REGISTRY, ARCH_REGISTRY
assert ARCH_REGISTRY.get('ClassPruningNet') is cp_basicsr.ClassPruningNet
assert MODEL_REGISTRY.get('ClassPruningModel') is cp_basicsr.ClassPruningModel
"""
    run(clean_python, '-W', 'error::RuntimeWarning', '-c', code, cwd=tmp_path)


def test_wheel_holds_checkpoints_options_and_license_and_no_tests(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {'cp_basicsr/checkpoints/for_test.pth', 'cp_basicsr/options_installed/demo_cp_swinir.yml'} <= set(names)
    assert any(name.endswith('/LICENSE') for name in names)
    assert {name.partition('/')[0] for name in names if '.dist-info' not in name} == {'cp_basicsr'}


def test_commands_say_what_they_do_on_one_screen_with_an_example(clean_python: Path, run: Run, tmp_path: Path) -> None:
    for name in ('train', 'test', 'restore', 'export', 'profile', 'benchmark', 'leaderboard'):
        text = run(clean_python.with_name(f'cp-{name}'), '--help', cwd=tmp_path, COLUMNS='80').stdout
        assert sum(max(1, -(-len(line) // 80)) for line in text.splitlines()) <= 40, name
        assert re.search(rf'^ +(cp-{name}|python -m cp_basicsr\.(tools\.)?{name}) ', text, re.M), name


def test_supported_pythons(described: metadata.PathDistribution) -> None:
    allowed = Requirement(f'python{described.metadata["Requires-Python"]}').specifier
    supported = [version for version in ('3.9', '3.10', '3.11', '3.12', '3.13') if version in allowed]
    assert supported == ['3.10', '3.11', '3.12']


def test_constraints_lie_in_the_ranges_of_the_package(source: Path, described: metadata.PathDistribution) -> None:
    ranges = {item.name: item.specifier for item in map(Requirement, described.requires)}
    lines = (source / '.ci/constraints.txt').read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith('#')]
    assert {item.name for item in pinned} == {'torch', 'torchvision'}
    for item in pinned:
        (pin,) = item.specifier
        assert pin.operator == '==' and pin.version in ranges[item.name]


def test_pip_settings_of_the_readme_command_pin_torch(run: Run, source: Path) -> None:
    """Old and new pip name the file by different keys; the pin is refused a rival before anything is fetched."""
    settings = {'PIP_CONFIG_FILE': '.ci/pip.conf', 'PIP_CONSTRAINT': None, 'PIP_BUILD_CONSTRAINT': None}
    listed = run(sys.executable, '-m', 'pip', 'config', 'list', cwd=source, **settings).stdout
    for key in ('constraint', 'build-constraint'):
        assert f"global.{key}='.ci/constraints.txt'" in listed
    command = ['install', '--dry-run', '--no-deps', '--no-index', 'torch==2.5.0']
    result = run(sys.executable, '-m', 'pip', *command, cwd=source, code=1, **settings)
    assert 'The user requested (constraint) torch==2.13.0' in result.stdout + result.stderr


def test_our_own_build_needs_no_torch(source: Path) -> None:
    """Metadata is made by a Python that has only the standard library and setuptools."""
    blocked = "import sys; sys.modules.update(torch=None, basicsr=None, numpy=None); sys.argv[1:] = ['--version']; "
    code = blocked + "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py'})"
    result = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True, check=True)
    assert re.fullmatch(r'\d+\.\d+\.\d+', result.stdout.split()[-1])


def test_import_is_light(run: Run, tmp_path: Path, source: Path) -> None:
    code = "import sys, cp_basicsr.autoload; print('torch' in sys.modules, 'basicsr' in sys.modules)"
    result = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(source))
    assert result.stdout.split() == ['False', 'False']


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import cp_basicsr

    with pytest.raises(AttributeError, match='no_such_name'):
        cp_basicsr.no_such_name  # noqa: B018
