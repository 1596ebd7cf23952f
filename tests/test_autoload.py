"""Literal processes: each starts Python in a clean environment that has our wheel, and BasicSR as it was published."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess]

# MODEL_REGISTRY refuses a second registration, which would show as our RuntimeWarning.
STRICT = ('-W', 'error::RuntimeWarning', '-c')
KNOWN = """
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
assert 'ClassPruningModel' in MODEL_REGISTRY and 'SRModel' in MODEL_REGISTRY
assert ARCH_REGISTRY.get('ClassPruningNet').__module__ == 'cp_basicsr.archs.class_pruning_arch'
"""


@pytest.mark.parametrize(
    'first',
    ['import torch; import basicsr', 'import basicsr; import torch', 'from cp_basicsr import ClassPruningNet'],
)
def test_types_are_registered_whatever_is_imported_first(
    first: str, clean_python: Path, run: Run, tmp_path: Path
) -> None:
    run(clean_python, *STRICT, first + KNOWN, cwd=tmp_path)


def test_types_can_join_a_basicsr_imported_before(clean_python: Path, run: Run, tmp_path: Path) -> None:
    code = 'from cp_basicsr import compat; compat.mend_before_import(); import basicsr; '
    code += 'from cp_basicsr import ClassPruningModel' + KNOWN
    run(clean_python, *STRICT, code, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD='0')


def test_spawned_workers_need_no_entry_point(clean_python: Path, run: Run, tmp_path: Path) -> None:
    """A spawned data worker imports the main module, here our launcher, and then unpickles a BasicSR dataset."""
    code = 'import cp_basicsr.train; from basicsr.data.paired_image_dataset import PairedImageDataset' + KNOWN
    run(clean_python, *STRICT, code, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD='0')


def test_importing_torch_leaves_everything_else_alone(clean_python: Path, run: Run, tmp_path: Path) -> None:
    code = """
import sys, torch, importlib.util
importlib.util.find_spec('basicsr')
print(sorted(name for name in sys.modules if name.partition('.')[0] in ('basicsr', 'cp_basicsr', 'torchvision')))
"""
    result = run(clean_python, '-W', 'error', '-c', code, cwd=tmp_path)
    assert result.stdout.strip() == "['cp_basicsr', 'cp_basicsr.autoload']"


def test_a_process_without_basicsr_pays_under_5_ms(clean_python: Path, run: Run, tmp_path: Path) -> None:
    code = """
import importlib.metadata, time
(point,) = importlib.metadata.entry_points(group='torch.backends', name='cp_basicsr')
start = time.perf_counter()
point.load()()
print(time.perf_counter() - start)
"""
    seconds = [float(run(clean_python, '-c', code, cwd=tmp_path).stdout) for _ in range(7)]
    assert min(seconds) < 0.005


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose cp_basicsr cannot register."""
    shutil.copytree(source / 'cp_basicsr', tmp_path / 'broken/cp_basicsr')
    (tmp_path / 'broken/cp_basicsr/registration.py').write_text('raise OSError("registration is broken")\n')
    return {'PYTHONPATH': str(tmp_path / 'broken')}


def test_a_broken_plugin_does_not_stop_torch_or_basicsr(
    broken: dict[str, str], clean_python: Path, run: Run, tmp_path: Path
) -> None:
    code = """
import torch
print(torch.ones(2).sum().item())
import warnings
with warnings.catch_warnings(record=True) as caught:
    import basicsr
from basicsr.utils.registry import MODEL_REGISTRY
print('SRModel' in MODEL_REGISTRY, 'ClassPruningModel' in MODEL_REGISTRY)
print([str(item.message) for item in caught if item.category is RuntimeWarning])
"""
    result = run(clean_python, '-c', code, cwd=tmp_path, **broken)
    sum_, known, warned = result.stdout.splitlines()
    assert (sum_, known) == ('2.0', 'True False')
    assert 'ClassPruning (cp_basicsr) could not join BasicSR' in warned and 'registration is broken' in warned


def test_our_launcher_stops_where_the_plugin_is_broken(
    broken: dict[str, str], clean_python: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / 'any.yml').write_text('name: any\n')
    command = [clean_python, '-m', 'cp_basicsr.train', '-opt', 'any.yml']
    result = run(*command, cwd=tmp_path, code=1, **broken)
    assert result.stderr.splitlines()[-1] == 'OSError: registration is broken'


def test_install_adds_one_finder_that_leaves_when_done(clean_python: Path, run: Run, tmp_path: Path) -> None:
    code = """
import sys
from cp_basicsr import autoload
before = list(sys.meta_path)
autoload.install(); autoload.install()
added = [finder for finder in sys.meta_path if finder not in before]
assert len(added) == 1
import basicsr
import importlib
from basicsr.data import paired_image_dataset
assert added[0] not in sys.meta_path
autoload.install()
assert added[0] not in sys.meta_path
import inspect
assert 'def build_model' in inspect.getsource(basicsr.models)
assert 'class SRModel' in inspect.getsource(basicsr.models.sr_model)
"""
    run(clean_python, *STRICT, code, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD='0')


def test_another_finder_that_asks_all_the_others_is_no_loop(run: Run, source: Path, tmp_path: Path) -> None:
    """Both finders ask each other for `basicsr`; the answer is that there is none."""
    (tmp_path / 'hide.py').write_text("""
import sys
from importlib.machinery import PathFinder
from cp_basicsr import autoload

class Asking:
    asked = 0
    def find_spec(self, name, path=None, target=None):
        if name != 'basicsr':
            return None
        Asking.asked += 1
        assert Asking.asked < 9, 'a loop'
        others = (finder for finder in sys.meta_path if finder is not self and finder is not PathFinder)
        return next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)

sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not PathFinder] + [Asking()]
autoload.install()
try:
    import basicsr
except ModuleNotFoundError as error:
    print(error)
""")
    result = run(sys.executable, 'hide.py', cwd=tmp_path, PYTHONPATH=str(source))
    assert result.stdout.strip() == "No module named 'basicsr'"
