"""A first look at a whole option file, before anything is built or an older experiment is moved away."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils import options as basicsr_options

from cp_basicsr.archs.building import read_pattern
from cp_basicsr.options import OptionError, check_keys, refuse_misspelt
from cp_basicsr.precision import check_precision
from cp_basicsr.routing.choice import VAL_KEYS, RoutingChoice

from .stages import StagePlan
from .training_options import TrainingOptions

TRAIN_KEYS = (
    'stages',
    'sandwich',
    'ranks',
    'ramp',
    'joint',
    'calibration',
    'grad_clip_norm',
    'precision',
    'reconstruct',
    'classifier_patches',
    'oracle_opt',
    'budget_opt',
    'confidence_opt',
)


def check_options(opt: Mapping[str, Any]) -> None:
    """Check what can be checked without building anything.

    Args:
        opt: the options as BasicSR has parsed them.

    Raises:
        OptionError: naming the option path, the value and what is allowed.
        PatternError: the levels cannot be used.
    """
    network = opt['network_g']
    if network.get('type') != 'ClassPruningNet':
        raise OptionError(
            f'network_g.type is {network.get("type")!r}; ClassPruningModel needs ClassPruningNet, with the '
            'architecture under network_g.base.'
        )
    check_keys(network, ['type', 'base', 'sparsity', 'classifier'], 'network_g')
    read_pattern(network.get('sparsity'))
    if opt['num_gpu'] != 0 and not torch.cuda.is_available():
        raise OptionError(f'num_gpu is {opt["num_gpu"]}, but PyTorch finds no CUDA device; write `num_gpu: auto`.')
    val = opt.get('val') or {}
    refuse_misspelt(val, VAL_KEYS, 'val')
    choice = RoutingChoice.from_val_options(val)
    check_precision(choice.precision, torch.device('cuda' if opt['num_gpu'] else 'cpu'))
    if opt['is_train']:
        refuse_misspelt(opt['train'], TRAIN_KEYS, 'train')
        _check_patches(opt, TrainingOptions.read(opt['train']).plan)


def _check_patches(opt: Mapping[str, Any], plan: StagePlan) -> None:
    """What a stage takes of the training patches lies within them and has a whole number of lq pixels."""
    scale, whole = opt.get('scale', 1), opt['datasets'].get('train', {}).get('gt_size')
    for index, stage in enumerate(plan.stages):
        if stage.gt_size and (stage.gt_size % scale or (whole and stage.gt_size > whole)):
            raise OptionError(
                f'train.stages[{index}].gt_size is {stage.gt_size}; allowed: a multiple of scale {scale}, at most '
                f'datasets.train.gt_size, {whole}.'
            )


def install_early_check() -> None:
    """Let BasicSR's ``parse_options`` check our options.

    Its train and test commands move an older experiment of the same name away before they build the model; a typing
    error must not do that.
    """
    original = basicsr_options.parse_options

    @functools.wraps(original)
    def parse_options(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], Any]:
        opt, arguments = original(root_path, is_train)
        if opt.get('model_type') == 'ClassPruningModel':
            check_options(opt)
        return opt, arguments

    for name in ('basicsr.utils.options', 'basicsr.train', 'basicsr.test'):
        if getattr(sys.modules.get(name), 'parse_options', None) is original:
            sys.modules[name].parse_options = parse_options
