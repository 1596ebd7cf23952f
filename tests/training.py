"""Tiny training runs: options as BasicSR's parser hands them to a model, batches, steps, resume, and snapshots."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cp_basicsr.archs  # noqa: F401  (BasicSR, mended where it does not import by itself)

# isort: split
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import check_resume
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

SRVGG = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 2}
SWINIR = {
    'type': 'SwinIR', 'upscale': 2, 'in_chans': 3, 'img_size': 8, 'window_size': 4, 'embed_dim': 8, 'depths': [2],
    'num_heads': [2], 'mlp_ratio': 2, 'img_range': 1.0, 'upsampler': 'pixelshuffledirect',
}  # fmt: skip
# Every source of randomness that SwinIR has.
SWINIR_RANDOM = SWINIR | {'drop_rate': 0.1, 'attn_drop_rate': 0.1, 'drop_path_rate': 0.5}
STAGES = ('supernet', 'classifier', 'joint')
METRICS = {
    'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True},
    'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True},
    'macs': {'type': 'calculate_macs', 'better': 'lower'},
}

Batch = dict[str, Tensor]


@ARCH_REGISTRY.register()
class BatchNormed(nn.Module):
    """A user's architecture (scale 1) with BatchNorm and a parameter that is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((3, 1, 1), 0.4), requires_grad=False)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.norm(self.middle(self.first(x - self.shift))).relu())


def network_options(base: Mapping[str, Any] = SRVGG, **sparsity: Any) -> dict[str, Any]:
    """A `network_g` block."""
    return {
        'type': 'ClassPruningNet',
        'base': dict(base),
        'sparsity': {'m': 4, 'levels': [1, 2, 4]} | sparsity,
        'classifier': {'type': 'DifficultyClassifier', 'num_feat': 4},
    }


def training_options(folder: Path, base: Mapping[str, Any] = SRVGG, iters: int = 2, **train: Any) -> dict[str, Any]:
    """Options of three stages of `iters` iterations each; keywords change keys of `train` (None drops).

    The images of `write_pairs(folder)` (made where there are none) validate and calibrate it; everything is written
    below `folder`.
    """
    if not (folder / 'gt').exists():
        write_pairs(folder, count=1, scale=base.get('upscale', 1))
    pairs = {
        'type': 'PairedImageDataset',
        'dataroot_gt': str(folder / 'gt'),
        'dataroot_lq': str(folder / 'lq'),
        'io_backend': {'type': 'disk'},
    }
    block = {
        'optim_g': {'type': 'Adam', 'lr': 1e-3, 'weight_decay': 0, 'betas': [0.9, 0.99]},
        'total_iter': 3 * iters,
        'stages': [{'name': name, 'iters': iters} for name in STAGES],
        'ranks': {'refresh_interval': 1},
        'calibration': {'dataset': pairs},
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        'oracle_opt': {'type': 'SoftOracleLoss'},
        'budget_opt': {'type': 'BudgetLoss', 'target': 0.6},
        'confidence_opt': {'type': 'ConfidenceLoss', 'loss_weight': 0.1},
    } | train
    experiment = folder / 'experiments' / 'tiny'
    return {
        'name': 'tiny',
        'model_type': 'ClassPruningModel',
        'scale': base.get('upscale', 1),
        'num_gpu': 0,
        'manual_seed': 0,
        'is_train': True,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'network_g': network_options(base),
        'datasets': {'val': {'name': 'val', 'phase': 'val', 'scale': base.get('upscale', 1), **pairs}},
        'path': {
            'pretrain_network_g': None,
            'resume_state': None,
            'models': str(experiment / 'models'),
            'training_states': str(experiment / 'training_states'),
            'visualization': str(experiment / 'visualization'),
        },
        'train': {key: value for key, value in block.items() if value is not None},
        'val': {'save_img': False, 'tile': {'size': 8}, 'metrics': METRICS},
        'logger': {'print_freq': 1},
    }


def user_options(folder: Path, base: Mapping[str, Any] = SRVGG, iters: int = 2, **train: Any) -> dict[str, Any]:
    """The same run as a user's option file for `basicsr/train.py` has it, with the same images to train on."""
    options = training_options(folder, base, iters, **train)
    for key in ('is_train', 'dist', 'rank', 'world_size'):
        del options[key]
    images = {key: value for key, value in options['datasets']['val'].items() if key not in ('phase', 'scale')}
    loader = {
        'gt_size': 16 * options['scale'],
        'use_hflip': True,
        'use_rot': True,
        'num_worker_per_gpu': 0,
        'batch_size_per_gpu': 2,
        'dataset_enlarge_ratio': 100,
    }
    options['datasets'] = {'train': images | {'name': 'train'} | loader, 'val': images}
    options['path'] = {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None}
    options['val'] |= {'val_freq': iters, 'budget': 0.6}
    options['logger'] = {'print_freq': 1, 'save_checkpoint_freq': iters, 'use_tb_logger': True, 'wandb': None}
    options['dist_params'] = {'backend': 'nccl', 'port': 29500}
    return options


def user_test_options(train: Mapping[str, Any], checkpoint: Path | None) -> dict[str, Any]:
    """The test option file that belongs to a training option file."""
    return {
        **{key: train[key] for key in ('name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'network_g')},
        'datasets': {'test_1': train['datasets']['val']},
        'path': {'pretrain_network_g': checkpoint and str(checkpoint), 'strict_load_g': True},
        'val': {**train['val'], 'save_img': True, 'suffix': None},
    }


def write_pairs(folder: Path, count: int = 2, size: tuple[int, int] = (32, 48), scale: int = 2) -> None:
    """`gt` and `lq` images, lq of `size` (height, width): flat in one half and busy in the other."""
    for side in ('gt', 'lq'):
        (folder / side).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        generator = np.random.default_rng(index)
        height, width = (scale * length for length in size)
        coarse = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        gt = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        gt[:, : width // 2] = gt[:, : width // 2] // 16 + 100
        lq = cv2.resize(gt, size[::-1], interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / 'gt' / f'image{index}.png'), gt)
        cv2.imwrite(str(folder / 'lq' / f'image{index}.png'), lq)


def batch_of(iteration: int, count: int = 4, scale: int = 2, side: int = 16) -> Batch:
    """The batch of an iteration: half of its patches are smooth; lq patches of `side` pixels."""
    generator = torch.Generator().manual_seed(iteration)
    coarse = torch.rand(count, 3, scale * side // 2, scale * side // 2, generator=generator)
    coarse[: count // 2] = 0.5 + 0.05 * coarse[: count // 2]
    gt = F.interpolate(coarse, scale_factor=2, mode='bilinear')
    return {'lq': F.avg_pool2d(gt, scale), 'gt': gt}


def half_dark_batch_of(iteration: int) -> Batch:
    """The same patches, the first half of them dark."""
    return {name: torch.cat([0.2 * images[::2], images[1::2]]) for name, images in batch_of(iteration).items()}


def train(model: Any, first: int, last: int, batches: Callable[[int], Batch] = batch_of, warmup_iter: int = -1) -> None:
    """Iterations `first` to `last` as basicsr/train.py runs them."""
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration, warmup_iter=warmup_iter)
        model.feed_data(batches(iteration))
        model.optimize_parameters(iteration)


def build(options: dict[str, Any]) -> Any:
    """A model whose first weights are always the same, from a copy of the options; makes the folders it writes to."""
    for name in ('models', 'training_states'):
        Path(options['path'][name]).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return build_model(copy.deepcopy(options))


def resume(options: dict[str, Any], iteration: int) -> Any:
    """A new model that goes on after `iteration`, as basicsr/train.py makes it."""
    options = copy.deepcopy(options)
    options['path']['resume_state'] = str(Path(options['path']['training_states']) / f'{iteration}.state')
    state = torch.load(options['path']['resume_state'])
    check_resume(options, state['iter'])
    torch.manual_seed(1234)
    model = build_model(options)
    model.resume_training(state)
    return model


def validation_loader(options: Mapping[str, Any]) -> Any:
    """BasicSR's loader of the validation images."""
    block = options['datasets']['val']
    return build_dataloader(build_dataset(block), block, num_gpu=0, dist=False, seed=0)


@torch.no_grad()
def separate(classifier: Any, images: list[Tensor], tile: int) -> None:
    """Give a DifficultyClassifier of three levels a last layer with which each is the favourite of some tiles.

    Tiles are told apart by what its untrained features tell best of these images.
    """
    last, features = classifier.head[2], []
    handle = last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].flatten(2).transpose(1, 2)))
    for image in images:
        classifier(image, tile)
    handle.remove()
    rows = torch.cat([each.flatten(0, 1) for each in features]).double()
    direction = torch.linalg.svd(rows - rows.mean(dim=0)).Vh[0]
    direction = direction / (rows @ direction).std()
    middle = (rows @ direction).median()
    last.weight.copy_(torch.stack([-5 * direction, 0 * direction, 5 * direction])[..., None, None])
    last.bias.copy_(torch.stack([5 * middle, torch.tensor(1.0), -5 * middle]))


def snapshot(model: Any) -> dict[str, Any]:
    """Everything that further training depends on."""
    return copy.deepcopy(
        {
            'stage': model.stage,
            'networks': [net.state_dict() for net in model._nets()],
            'optimizers': [optimizer.state_dict() for optimizer in model.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in model.schedulers],
        }
    )


def assert_same(one: Any, other: Any, where: str = '') -> None:
    """Equal in structure and bit for bit in every number (NaN equals NaN)."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=lambda text: f'{where}: {text}')
    elif isinstance(one, Mapping):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f'{where}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f'{where}[{index}]')
    else:
        assert one == other, where
