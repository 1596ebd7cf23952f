"""Each mend, in a process that needs it and where it is not needed."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from cp_basicsr import compat

Run = Callable[..., CompletedProcess]

HIDE_DISTUTILS = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == 'distutils':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.modules.pop('_distutils_hack', None)
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'DistutilsMetaFinder']
sys.meta_path.insert(0, Hide())
try:
    import distutils.version
except ModuleNotFoundError:
    pass
else:
    raise SystemExit('distutils was not hidden')
"""
NO_COMPILED_OPERATORS = """
import sys, torch
def refuse(path):
    raise OSError(f'{path}: built for CUDA')
torch.ops.load_library = refuse
try:
    import torchvision
except RuntimeError as error:
    print(error)
for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
    del sys.modules[name]
"""


def test_distutils_comes_from_setuptools(run: Run, source: Path, tmp_path: Path) -> None:
    code = (
        HIDE_DISTUTILS
        + """
from cp_basicsr.compat import mend_distutils
mend_distutils()
from distutils.version import LooseVersion
assert LooseVersion('0.28.0+cu130') >= LooseVersion('0.9.0')
"""
    )
    run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(source))


def test_torchvision_imports_without_its_compiled_operators(run: Run, source: Path, tmp_path: Path) -> None:
    code = (
        NO_COMPILED_OPERATORS
        + """
from cp_basicsr.compat import mend_torchvision_operators
mend_torchvision_operators()
import torchvision
from torchvision.transforms.functional import rgb_to_grayscale
assert rgb_to_grayscale(torch.ones(3, 2, 2)).shape == (1, 2, 2)
mend_torchvision_operators()
"""
    )
    result = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(source))
    assert result.stdout.strip() == 'operator torchvision::nms does not exist'


def test_a_working_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    working = object()
    monkeypatch.setitem(sys.modules, 'torchvision', working)
    monkeypatch.setattr(torch.library, 'define', lambda *arguments: pytest.fail(f'defined {arguments}'))
    compat.mend_torchvision_operators()
    assert sys.modules['torchvision'] is working


def test_functional_tensor_is_back(basicsr: None) -> None:
    from basicsr.data.degradations import rgb_to_grayscale

    image = torch.rand(3, 4, 4)
    expected = 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]  # ITU-R BT.601 luma, as torchvision rounds it
    torch.testing.assert_close(rgb_to_grayscale(image)[0], expected)


def test_an_existing_functional_tensor_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    existing = object()
    monkeypatch.setitem(sys.modules, 'torchvision.transforms.functional_tensor', existing)
    compat.mend_functional_tensor()
    assert sys.modules['torchvision.transforms.functional_tensor'] is existing


@pytest.fixture(scope='module')
def basicsr() -> None:
    """BasicSR, imported and mended."""
    from cp_basicsr.autoload import activate

    activate()


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that mends of a machine without CUDA replace, as that machine's torch has them."""

    def current_device() -> int:
        raise AssertionError('Torch not compiled with CUDA enabled')

    def cuda(self: torch.UntypedStorage, device: object = None, non_blocking: bool = False) -> None:
        raise AssertionError(f'asked for {device}')

    monkeypatch.setattr(torch.cuda, 'current_device', current_device)
    monkeypatch.setattr(torch.UntypedStorage, 'cuda', cuda)


def test_resume_state_is_loaded_into_main_memory(basicsr: None, no_cuda: None, tmp_path: Path) -> None:
    from basicsr.models.lr_scheduler import MultiStepRestartLR
    from basicsr.train import load_resume_state

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.5)
    optimizer.param_groups[0]['params'][0].sum().backward()
    optimizer.step()
    scheduler = MultiStepRestartLR(optimizer, milestones=[2, 2, 5])
    state = {'epoch': 1, 'iter': 7, 'optimizers': [optimizer.state_dict()], 'schedulers': [scheduler.state_dict()]}
    torch.save(state, tmp_path / '7.state')
    options = {'auto_resume': False, 'path': {'resume_state': str(tmp_path / '7.state'), 'models': 'models'}}

    with pytest.raises(AssertionError, match='CUDA'):
        load_resume_state(options)
    compat.mend_load_resume_state()
    loaded = load_resume_state(options)

    assert loaded['schedulers'][0]['milestones'] == {2: 2, 5: 1}
    moment = loaded['optimizers'][0]['state'][0]['exp_avg']
    assert moment.device.type == 'cpu'
    assert torch.equal(moment, optimizer.state_dict()['state'][0]['exp_avg'])


def test_other_callers_still_hear_that_there_is_no_cuda(no_cuda: None) -> None:
    compat.mend_load_resume_state()
    with pytest.raises(AssertionError, match='not compiled with CUDA'):
        torch.cuda.current_device()
    with pytest.raises(AssertionError, match='asked for 0'):
        torch.ones(1).untyped_storage().cuda(0)


def test_machines_with_cuda_keep_their_own_functions(basicsr: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr.models.base_model import BaseModel

    monkeypatch.setattr(BaseModel, 'model_to_device', BaseModel.model_to_device)
    for mend in ('mend_load_resume_state', 'mend_init_dist'):
        monkeypatch.setattr(compat, mend, functools.partial(pytest.fail, mend))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    compat.mend_after_import()


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_init_dist_takes_gloo_without_cuda(launcher: str, basicsr: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr.utils import dist_util

    started = {}
    published = {name: _published(getattr(dist_util, name)) for name in ('_init_dist_pytorch', '_init_dist_slurm')}
    for name, function in published.items():
        monkeypatch.setattr(dist_util, name, function)
    monkeypatch.setattr(dist_util, 'torch', torch)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(dist_util.dist, 'init_process_group', lambda **options: started.update(options))
    monkeypatch.setattr(dist_util.subprocess, 'getoutput', lambda command: 'node0')
    for name, value in {'RANK': 1, 'SLURM_PROCID': 1, 'SLURM_NTASKS': 2, 'SLURM_NODELIST': 'node[0-1]'}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(os, 'environ', dict(os.environ))

    with pytest.raises(ZeroDivisionError):
        dist_util.init_dist(launcher)
    compat.mend_init_dist()
    dist_util.init_dist(launcher)
    assert started == {'backend': 'gloo'}


def _published(function: object) -> object:
    """The function as BasicSR has it, below the mends made in this process."""
    return getattr(function, '__wrapped__', function)


def test_one_cpu_process_is_wrapped_for_distribution(basicsr: None, tmp_path: Path) -> None:
    from basicsr.models.base_model import BaseModel

    model = BaseModel({'num_gpu': 0, 'is_train': True, 'dist': True, 'find_unused_parameters': True})
    address = f'file://{tmp_path / "rendezvous"}'
    torch.distributed.init_process_group('gloo', init_method=address, rank=0, world_size=1)
    try:
        net = model.model_to_device(torch.nn.Linear(2, 1))
        assert isinstance(net, torch.nn.parallel.DistributedDataParallel)
        assert net.device_ids is None and net.find_unused_parameters
        assert model.get_bare_model(net) is net.module
    finally:
        torch.distributed.destroy_process_group()


def test_a_single_process_is_not_wrapped(basicsr: None) -> None:
    from basicsr.models.base_model import BaseModel

    net = torch.nn.Linear(2, 1)
    assert BaseModel({'num_gpu': 0, 'is_train': True, 'dist': False}).model_to_device(net) is net


WANDB_WITHOUT_GENERATE_ID = {
    'wandb/__init__.py': """
import json, pathlib
from . import util
def init(**options):
    kept = {name: options[name] for name in ('id', 'resume', 'sync_tensorboard')}
    pathlib.Path('run.json').write_text(json.dumps(kept))
""",
    'wandb/util.py': '',
    'wandb/sdk/__init__.py': '',
    'wandb/sdk/lib/__init__.py': '',
    'wandb/sdk/lib/runid.py': "def generate_id(length=8):\n    return 'abcdefgh'[:length]\n",
}


def test_wandb_without_generate_id_starts_a_run(run: Run, source: Path, tmp_path: Path) -> None:
    """A stand-in with the interface of wandb 0.28.2, by the name that basicsr/train.py takes the function from."""
    for name, content in WANDB_WITHOUT_GENERATE_ID.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code = """
import json, pathlib
from cp_basicsr.autoload import activate
activate()
from basicsr.utils import init_wandb_logger
init_wandb_logger({'name': 'run', 'logger': {'wandb': {'project': 'p', 'resume_id': None}}})
found = json.loads(pathlib.Path('run.json').read_text())
assert found == {'id': 'abcdefgh', 'resume': 'never', 'sync_tensorboard': True}
init_wandb_logger({'name': 'run', 'logger': {'wandb': {'project': 'p', 'resume_id': 'earlier'}}})
assert json.loads(pathlib.Path('run.json').read_text())['id'] == 'earlier'
"""
    run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=f'{source}{os.pathsep}{tmp_path}')
