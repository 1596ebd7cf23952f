"""Every option file that we ship: what BasicSR and the plugin read from it fits together and can be built."""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.losses import build_loss
from basicsr.models import build_model
from basicsr.utils.options import parse_options
from basicsr.utils.registry import METRIC_REGISTRY

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.models.training_options import TrainingOptions

OPTIONS = Path(__file__).resolve().parents[1] / 'options'
PAIRED = (
    'swinir', 'swinir_light', 'swinir_color_dn', 'swinir_jpeg', 'edsr', 'msrresnet', 'rcan', 'rrdbnet',
    'srvgg_x2', 'srvgg_x3', 'srvgg_x4', 'srvgg_gray_dn', 'srvgg_color_dn', 'srvgg_small_x2', 'srvgg_small_color_dn',
)  # fmt: skip
FILES = sorted(OPTIONS.glob('*.yml'))
TEST_FILES = [path for path in FILES if path.stem.startswith('test_')]
TRAIN_FILES = [path for path in FILES if path not in TEST_FILES]
# Each network once: a train file has the same as its test file.
NETWORK_FILES = [path for path in FILES if not path.stem.startswith('train_')]


def parse(path: Path) -> dict[str, Any]:
    """What BasicSR's own command line makes of a file, for the CPU and without the checkpoint it names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', ['basicsr', '-opt', str(path)])
        patch.setattr('torch.cuda.device_count', lambda: 0)
        opt, _ = parse_options('anywhere', is_train=path in TRAIN_FILES)
    opt['path']['pretrain_network_g'] = None
    return opt


def train_file_of(path: Path) -> Path:
    return path.with_name(path.name.replace('test_', 'train_', 1)) if path in TEST_FILES else path


def all_datasets(opt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every dataset block, with what BasicSR and the calibration add."""
    blocks = dict(opt['datasets'])
    if opt['is_train']:
        calibration = opt['train']['calibration']['dataset']
        blocks['calibration'] = {'name': 'calibration', 'scale': opt['scale'], **calibration, 'phase': 'val'}
    return blocks


def with_images(block: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The block on one image of its own, on disk."""
    block = copy.deepcopy(block)
    size = block.get('gt_size', 48)
    roles = {'gt': ('{}', size), 'lq': (block.get('filename_tmpl', '{}'), size // block['scale'])}
    for role, (template, side) in roles.items():
        if f'dataroot_{role}' in block:
            block[f'dataroot_{role}'] = str(folder / role)
            (folder / role).mkdir(parents=True)
            image = np.full((side, side, 3), (10, 100, 200), np.uint8)
            cv2.imwrite(str(folder / role / f'{template.format("image")}.png'), image)
    return block | {'io_backend': {'type': 'disk'}}


def ids(path: Path) -> str:
    return path.stem


@pytest.fixture(scope='module', params=NETWORK_FILES, ids=ids)
def network_file(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope='module')
def net(network_file: Path) -> Iterator[ClassPruningNet]:
    """The network of the model that tests with a file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build_model(parse(network_file) | {'is_train': False}).net
    torch.set_num_threads(threads)


def test_network_gives_the_scale_of_the_file(network_file: Path, net: ClassPruningNet) -> None:
    scale, side = parse(network_file)['scale'], 8 if net.multiple == 1 else net.multiple
    with torch.no_grad():
        output = net(torch.zeros(1, net.in_channels, side, side), level=0)
    assert output.shape == (1, net.in_channels, scale * side, scale * side)
    assert output.isfinite().all()


def test_model_takes_the_routing_of_the_file(network_file: Path, net: ClassPruningNet) -> None:
    val = parse(network_file)['val']
    assert (net.choice.budget, net.choice.tile) == (val['budget'], val['tile']['size'])


def test_levels_allow_the_budgets(network_file: Path, net: ClassPruningNet) -> None:
    train = parse(train_file_of(network_file))
    side = train['datasets']['train']['gt_size'] // train['scale']
    shape = (net.in_channels, side, side)
    costs = net.costs(shape) + net.classifier_macs(shape, net.choice.tile) / net.macs(shape).dense
    for budget in (net.choice.budget, train['val']['budget'], train['train']['budget_opt']['target']):
        assert costs[0] < budget < costs[-1]


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_datasets_give_what_the_network_takes(path: Path, tmp_path: Path) -> None:
    opt = parse(path)
    base, scale = opt['network_g']['base'], opt['scale']
    for key, block in all_datasets(opt).items():
        sample = build_dataset(with_images(block, tmp_path / key))[0]
        channels, height, width = sample['lq'].shape
        assert channels == base.get('in_chans', base.get('num_in_ch')), key
        assert sample['gt'].shape == (channels, scale * height, scale * width), key
        if key == 'train':
            assert height == width
            assert height % base.get('window_size', 1) == 0


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_folders_fit_scale_and_backend(path: Path) -> None:
    opt = parse(path)
    for key, block in all_datasets(opt).items():
        roots = [root for name, root in block.items() if name.startswith('dataroot_')]
        assert {root.endswith('.lmdb') for root in roots} == {block['io_backend']['type'] == 'lmdb'}, key
        scales = re.findall(r'(?:_X|/X|LRbicx|}x)(\d)', f'{block.get("dataroot_lq")} {block.get("filename_tmpl")}')
        assert set(scales) == ({str(opt['scale'])} if opt['scale'] > 1 else set()), key


@pytest.mark.parametrize('path', FILES, ids=ids)
def test_metrics(path: Path) -> None:
    opt = parse(path)
    metrics = opt['val']['metrics']
    assert {metric['type'] for metric in metrics.values()} == {'calculate_psnr', 'calculate_ssim', 'calculate_macs'}
    assert all(metric['type'] in METRIC_REGISTRY for metric in metrics.values())
    assert metrics['macs']['better'] == 'lower'
    # papers crop the scale in super-resolution, and nothing in denoising
    crop = opt['scale'] if opt['scale'] > 1 else 0
    assert metrics['psnr']['crop_border'] == metrics['ssim']['crop_border'] == crop


@pytest.mark.parametrize('path', TRAIN_FILES, ids=ids)
def test_own_keys_and_stages(path: Path) -> None:
    train = parse(path)['train']
    stages = TrainingOptions.read(train).plan.stages
    names = [stage.name for stage in stages]
    if parse(path)['network_g']['sparsity']['weights'] == 'shared':
        assert names == ['supernet', 'classifier', 'joint']
    else:  # without a checkpoint their levels, with values of their own, start from a dense network trained first
        starts_from_checkpoint = path.stem in ('train_cp_srvgg_color_dn', 'train_cp_srvgg_gray_dn')
        assert names == [*([] if starts_from_checkpoint else ['dense']), 'supernet', 'classifier']
    assert stages[-1].last == train['total_iter']
    for stage in stages:
        scheduler = stage.scheduler
        if scheduler['type'] == 'MultiStepLR':
            assert max(scheduler['milestones']) < stage.iters
        else:
            assert sum(scheduler['periods']) == stage.iters
            assert len(scheduler['restart_weights']) == len(scheduler['periods'])


@pytest.mark.parametrize('path', TRAIN_FILES, ids=ids)
def test_losses_can_be_built(path: Path) -> None:
    train = parse(path)['train']
    blocks = {key: block for key, block in train.items() if key.endswith('_opt') and key != 'perceptual_opt'}
    assert {'pixel_opt', 'oracle_opt', 'budget_opt', 'confidence_opt'} <= set(blocks)
    assert all(blocks[key] for key in ('pixel_opt', 'oracle_opt', 'budget_opt'))
    for key, block in blocks.items():
        assert block is None or build_loss(block).loss_weight == block['loss_weight'], key


@pytest.mark.parametrize('name', PAIRED)
def test_test_file_fits_its_train_file(name: str) -> None:
    train, test = (parse(OPTIONS / f'{kind}_cp_{name}.yml') for kind in ('train', 'test'))
    for key in ('model_type', 'scale', 'network_g'):
        assert train[key] == test[key], key
    assert train['val']['tile'] == test['val']['tile']
    text = (OPTIONS / f'test_cp_{name}.yml').read_text()
    assert f'\n  pretrain_network_g: experiments/{train["name"]}/models/net_g_latest.pth\n' in text


def test_no_two_files_have_one_name() -> None:
    assert len({parse(path)['name'] for path in FILES}) == len(FILES)
