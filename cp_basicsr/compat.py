"""Every change made to somebody else's package, each with its cause. None is made where it is not needed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch


def mend_before_import() -> None:
    """Mend what stops `import basicsr`. Call it before the modules of `basicsr` are imported."""
    mend_distutils()
    mend_torchvision_operators()
    mend_functional_tensor()


def mend_after_import() -> None:
    """Mend what stops BasicSR's training and testing. Call it once, after `basicsr.models` has been imported."""
    mend_model_to_device()
    mend_init_wandb_logger()
    # Counting devices, unlike torch.cuda.is_available, leaves CUDA untouched for processes forked later.
    if torch.cuda.device_count() == 0:
        mend_load_resume_state()
        mend_init_dist()


def mend_distutils() -> None:
    """Make `from distutils.version import LooseVersion` work on Python 3.12, which has no distutils (PEP 632).

    `basicsr/archs/arch_util.py` needs it. setuptools brings its own copy, but offers it under the old name only when
    its `.pth` file was read at start-up or setuptools has been imported; so it is imported here, where it is missing.
    """
    try:
        import distutils.version  # noqa: F401
    except ModuleNotFoundError:
        import setuptools  # noqa: F401


def mend_torchvision_operators() -> None:
    """Make `import torchvision` work where a torchvision built for CUDA lies beside a torch built for the CPU.

    Its compiled operators do not load then, and `torchvision/_meta_registrations.py` describes `nms` and `qnms` to
    torch without asking whether they exist: `RuntimeError: operator torchvision::nms does not exist`
    (https://github.com/pytorch/vision/issues/9085). Declared, without an implementation, they satisfy it;
    calling them still fails, as does every other compiled operator of that torchvision.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if 'operator torchvision::nms does not exist' not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
        for operator in ('nms', 'qnms'):
            torch.library.define(
                f'torchvision::{operator}', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
            )
        import torchvision  # noqa: F401


def mend_functional_tensor() -> None:
    """Bring back the name `torchvision.transforms.functional_tensor`, gone since torchvision 0.17.

    `basicsr/data/degradations.py` takes `rgb_to_grayscale` from it (https://github.com/XPixelGroup/BasicSR/issues/663);
    the public module `functional` has the same function.
    """
    name = 'torchvision.transforms.functional_tensor'
    try:
        __import__(name)
    except ModuleNotFoundError:
        from torchvision.transforms import functional

        sys.modules[name] = functional


class _HostDevice(int):
    """The device that `load_resume_state` is told on a machine without CUDA: main memory."""


def mend_load_resume_state() -> None:
    """Let `load_resume_state` of `basicsr/train.py` load a training state on a machine without CUDA.

    It calls `torch.cuda.current_device()`, which raises there, and then
    `torch.load(path, map_location=lambda storage, loc: storage.cuda(device_id))`. `python basicsr/train.py` makes that
    function part of `__main__`, so it cannot be replaced; instead, it alone is told a `_HostDevice`, and moving a
    storage to that returns the storage. Every other caller and every other device gets what it got before.
    """
    current_device, cuda = torch.cuda.current_device, torch.UntypedStorage.cuda

    @functools.wraps(current_device)
    def current_device_or_host() -> int:
        caller = sys._getframe(1).f_code
        if caller.co_name == 'load_resume_state' and caller.co_filename.endswith('train.py'):
            return _HostDevice(0)
        return current_device()

    @functools.wraps(cuda)
    def cuda_or_host(self: torch.UntypedStorage, device: Any = None, non_blocking: bool = False) -> Any:
        return self if isinstance(device, _HostDevice) else cuda(self, device, non_blocking)

    torch.cuda.current_device = current_device_or_host
    torch.UntypedStorage.cuda = cuda_or_host


def mend_init_dist() -> None:
    """Let `--launcher pytorch` and `--launcher slurm` run on a machine without CUDA.

    `basicsr/utils/dist_util.py` computes `rank % torch.cuda.device_count()`, a division by zero there, and
    `parse_options` gives it no other backend than NCCL, which needs CUDA. The module's own name `torch` serves these
    lines only; it is given one device that needs no selecting, and NCCL becomes Gloo.
    """
    from basicsr.utils import dist_util

    def with_gloo(start: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(start)
        def start_with_gloo(backend: str, **kwargs: Any) -> None:
            start('gloo' if backend == 'nccl' else backend, **kwargs)

        return start_with_gloo

    dist_util.torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 1, set_device=lambda device: None))
    dist_util._init_dist_pytorch = with_gloo(dist_util._init_dist_pytorch)
    dist_util._init_dist_slurm = with_gloo(dist_util._init_dist_slurm)


def mend_model_to_device() -> None:
    """Let `BaseModel.model_to_device` distribute a network that stays on the CPU (`num_gpu: 0`).

    It passes `device_ids=[torch.cuda.current_device()]` to DistributedDataParallel, which takes none for a CPU module.
    """
    from basicsr.models.base_model import BaseModel

    model_to_device = BaseModel.model_to_device

    @functools.wraps(model_to_device)
    def model_to_cpu_or_device(self: BaseModel, net: torch.nn.Module) -> torch.nn.Module:
        if self.device.type != 'cpu' or not self.opt['dist']:
            return model_to_device(self, net)
        return torch.nn.parallel.DistributedDataParallel(
            net.to(self.device), find_unused_parameters=self.opt.get('find_unused_parameters', False)
        )

    BaseModel.model_to_device = model_to_cpu_or_device


def mend_init_wandb_logger() -> None:
    """Let `init_wandb_logger` start a run with wandb 0.28.2 or later.

    It names the run by `wandb.util.generate_id`, which is gone there (https://github.com/THUDM/slime/issues/2332);
    `wandb.sdk.lib.runid` has the same function.
    """
    from basicsr import utils
    from basicsr.utils import logger
    from basicsr.utils.dist_util import master_only

    init_wandb_logger = logger.init_wandb_logger

    @master_only
    @functools.wraps(init_wandb_logger)
    def init_with_an_id(opt: dict[str, Any]) -> None:
        import wandb

        if not hasattr(wandb.util, 'generate_id'):
            from wandb.sdk.lib.runid import generate_id

            wandb.util.generate_id = generate_id
        init_wandb_logger(opt)

    logger.init_wandb_logger = utils.init_wandb_logger = init_with_an_id
