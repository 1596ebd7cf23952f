"""Validation: quality, MACs and level usage in the log and in TensorBoard, for every way of choosing levels."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.models.swinir_model import SwinIRModel
from basicsr.utils import tensor2img
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from training import (
    METRICS,
    SRVGG,
    SWINIR,
    build,
    network_options,
    separate,
    train,
    training_options,
    validation_loader,
    write_pairs,
)

from cp_basicsr.options import OptionError
from cp_basicsr.routing.picture import LEAST_BOX, LEGEND_HEIGHT, draw_level_map

pytestmark = pytest.mark.usefixtures('one_thread')
SIZE = (40, 56)  # 5 x 7 tiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pairs(tmp_path, size=SIZE)
    return tmp_path


def make_model(options: Mapping[str, Any], **val: Any) -> Any:
    """A model for testing whose classifier is sure of different levels on different tiles."""
    model = build(dict(options) | {'is_train': False, 'val': dict(options['val']) | val})
    separate(model.net.classifier, [data['lq'] for data in validation_loader(options)], tile=8)
    return model


def image_of(options: Mapping[str, Any], stem: str) -> dict[str, Any]:
    """A validation image by its name; BasicSR's order is that of the folder."""
    return next(data for data in validation_loader(options) if Path(data['lq_path'][0]).stem == stem)


def logged(log: list[str], what: str) -> dict[str, float]:
    """Numbers behind `# name:` in the entry of the log that begins with `what`."""
    entry = next(entry for entry in log if entry.startswith(f'INFO {what}\n'))
    return {name: float(value) for name, value in re.findall(r'# (\w+): ([\d.]+)', entry)}


def usage(log: list[str], name: str) -> tuple[float, list[float]]:
    """MACs share and shares of tiles, as fractions, from the log."""
    entry = next(entry for entry in log if entry.startswith(f'INFO Level usage {name}\n'))
    shares = re.findall(r'level \d \(\d:4\) ([\d.]+) %', entry)
    return float(re.search(r'# MACs: ([\d.]+) % of dense', entry)[1]) / 100, [float(share) / 100 for share in shares]


def measured(model: Any, loader: Any) -> tuple[dict[str, float], float, list[float]]:
    """The same figures from restoring every image by hand."""
    quality, macs, tiles = dict.fromkeys(METRICS, 0.0), 0, np.zeros(3)
    for data in loader:
        restored = model.net.eval().restore(data['lq'])
        images = {'img': tensor2img(restored.image), 'img2': tensor2img(data['gt'])}
        share = restored.macs / model.net.macs(data['lq'].shape[1:]).dense
        for name, options in METRICS.items():
            quality[name] += calculate_metric(images | {'macs_share': share}, options) / len(loader)
        macs += share / len(loader)
        tiles += np.bincount(restored.levels.flatten(), minlength=3)
    return quality, macs, list(tiles / tiles.sum())


@pytest.mark.parametrize(
    'val', [{'budget': 0.5}, {'policy': 'argmax'}, {}, {'level': 1}, {'tile': None, 'budget': 0.7}]
)
def test_the_log_holds_quality_macs_and_level_usage(val: dict[str, Any], folder: Path, log: list[str]) -> None:
    options = training_options(folder)
    model, loader = make_model(options, **val), validation_loader(options)
    model.validation(loader, 'tiny', None, save_img=False)
    quality, macs, shares = measured(model, loader)
    found = logged(log, 'Validation val')
    assert found == pytest.approx(quality, abs=1e-4)
    assert found['macs'] == pytest.approx(macs, abs=1e-4)
    logged_macs, logged_shares = usage(log, 'val')
    assert logged_macs == pytest.approx(macs, abs=1e-4)
    assert logged_shares == pytest.approx(shares, abs=1e-3)
    if 'budget' in val and val.get('tile', True):
        assert macs == pytest.approx(val['budget'], abs=0.03)
        assert min(shares) > 0


def test_a_level_costs_what_it_costs_and_needs_no_classifier(folder: Path, log: list[str]) -> None:
    options = training_options(folder)
    for level, index in ((0, 0), (1, 1), (-1, 2)):
        log.clear()
        model = make_model(options, level=level)
        model.validation(validation_loader(options), 'tiny', None, save_img=False)
        macs, shares = usage(log, 'val')
        assert macs == pytest.approx(float(model.net.costs((3, *SIZE))[index]), abs=1e-4)
        assert shares == [float(k == index) for k in range(3)]
    assert macs == 1


def test_argmax_is_the_classifier_s_favourite_and_its_macs_count(folder: Path) -> None:
    options = training_options(folder)
    model = make_model(options, policy='argmax')
    data = image_of(options, 'image0')
    model.feed_data(data)
    model.test()
    net, shape = model.net, (3, *SIZE)
    assert torch.equal(model.restored.levels, net.predict(data['lq'], 8).argmax(dim=1))
    assert len(model.restored.levels.unique()) == 3
    counts = torch.bincount(model.restored.levels.flatten(), minlength=3).tolist()
    # Every layer of this network works on lq pixels, so the MACs follow the areas exactly.
    spent = sum(64 * count * net.macs(shape).level(k) for k, count in enumerate(counts)) // (SIZE[0] * SIZE[1])
    assert model.restored.macs == spent + net.classifier_macs(shape, 8)


def test_while_the_supernet_learns_every_level_is_validated(folder: Path, log: list[str]) -> None:
    options = training_options(folder)
    options['val']['budget'] = 0.6
    model = build(options)
    train(model, 1, 1)
    model.validation(validation_loader(options), 1, None, save_img=True)
    for level in range(3):
        assert usage(log, f'val/level{level}')[0] == pytest.approx(float(model.net.costs((3, *SIZE))[level]), abs=1e-4)
    assert not any(entry.startswith('INFO Validation val\n') for entry in log)
    pictures = sorted(path.name for path in Path(options['path']['visualization'], 'image0').iterdir())
    assert pictures == [f'image0_1_level{level}.png' for level in range(3)]
    assert model.net.training
    train(model, 2, 3)
    model.validation(validation_loader(options), 3, None, save_img=True)
    assert usage(log, 'val')[0] == pytest.approx(0.6, abs=0.03)
    assert Path(options['path']['visualization'], 'image1', 'image1_3.png').is_file()
    assert (model.net.base.training, model.net.classifier.training) == (False, True)


def test_a_level_asked_for_is_validated_in_every_stage(folder: Path, log: list[str]) -> None:
    options = training_options(folder)
    options['val']['level'] = 0
    model = build(options)
    for iteration in (1, 3, 5):
        train(model, iteration, iteration)
        log.clear()
        model.validation(validation_loader(options), iteration, None, save_img=False)
        assert usage(log, 'val')[1] == [1, 0, 0]


def test_the_ema_is_what_is_validated(folder: Path) -> None:
    options = training_options(folder, ema_decay=0.5)
    model = build(options)
    train(model, 1, 4)
    data = image_of(options, 'image0')
    model.feed_data(data)
    model.test()
    with torch.no_grad():
        assert torch.equal(model.output, model.net_g_ema.eval()(data['lq']))
        assert not torch.allclose(model.output, model.net.eval()(data['lq']), rtol=1e-5, atol=1e-5)


def test_tensorboard_gets_scalars_and_the_level_map(folder: Path) -> None:
    options = training_options(folder)
    model = make_model(options, budget=0.5)
    writer = SummaryWriter(str(folder / 'tb'))
    loader = validation_loader(options)
    model.validation(loader, 7, writer, save_img=False)
    writer.close()
    events = EventAccumulator(str(folder / 'tb'), size_guidance={'images': 0})
    events.Reload()
    quality, macs, shares = measured(model, loader)
    expected = {f'metrics/val/{name}': value for name, value in quality.items()} | {'metrics/val/macs_share': macs}
    expected |= {f'usage/val/level{level}': share for level, share in enumerate(shares)}
    assert set(events.Tags()['scalars']) == set(expected)
    for tag, value in expected.items():
        (event,) = events.Scalars(tag)
        assert (event.step, event.value) == (7, pytest.approx(value, rel=1e-5))
    assert set(events.Tags()['images']) == {'level_map/val/image0', 'level_map/val/image1'}
    (picture,) = events.Images('level_map/val/image0')
    found = cv2.imdecode(np.frombuffer(picture.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)  # BGR again
    restored = model.net.restore(image_of(options, 'image0')['lq'])
    levels = restored.levels[0].numpy()
    assert np.array_equal(found, draw_level_map(tensor2img(restored.image), levels, 16, model.net.pattern))
    assert found.shape == (2 * SIZE[0] + LEGEND_HEIGHT, max(2 * SIZE[1], 3 * LEAST_BOX), 3)


@pytest.mark.parametrize('size', [(9, 14), (8, 8), (11, 8)])
@pytest.mark.parametrize('upsampler', ['pixelshuffledirect', ''])
@pytest.mark.usefixtures('reference_path')
def test_the_densest_level_pads_as_swinirmodel_does(size: tuple[int, int], upsampler: str, tmp_path: Path) -> None:
    """Bit for bit, at sizes that no window divides, upscaling or not."""
    scale = 2 if upsampler else 1
    base = SWINIR | {'upsampler': upsampler, 'upscale': scale}
    write_pairs(tmp_path, size=size, scale=scale)
    options = training_options(tmp_path, base)
    options['val']['level'] = -1
    model = build(options | {'is_train': False})
    plain = SwinIRModel(copy.deepcopy(options) | {'is_train': False, 'network_g': dict(base)})
    plain.net_g.load_state_dict(model.net.bake(-1).state_dict())
    for data in validation_loader(options):
        outputs = []
        for one in (model, plain):
            one.feed_data(data)
            one.test()
            outputs.append(one.output)
        assert torch.equal(*outputs)
        assert outputs[0].shape[-2:] == (scale * size[0], scale * size[1])


def test_an_image_smaller_than_its_padding_is_restored(tmp_path: Path) -> None:
    """SwinIRModel fails here: an image of 1 x 2 pixels has nothing to reflect."""
    options = training_options(tmp_path, SWINIR)
    model = build(options | {'is_train': False})
    model.feed_data({'lq': torch.rand(1, 3, 1, 2)})
    model.test()
    assert model.output.shape == (1, 3, 2, 4)


def test_saved_pictures_of_a_test_are_named_as_basicsr_does(folder: Path) -> None:
    options = training_options(folder)
    for suffix, name in ((None, 'image0_tiny.png'), ('x', 'image0_x.png')):
        model = make_model(options, suffix=suffix)
        model.validation(validation_loader(options), 'tiny', None, save_img=True)
        path = Path(options['path']['visualization'], 'val', name)
        model.feed_data(image_of(options, 'image0'))
        model.test()
        assert np.array_equal(cv2.imread(str(path)), tensor2img(model.output))


def test_validation_without_metrics_and_without_gt(folder: Path, log: list[str]) -> None:
    options = training_options(folder)
    model = make_model(options, metrics=None)
    loader = validation_loader(
        {'datasets': {'val': {'name': 'single', 'phase': 'val', 'type': 'SingleImageDataset',
                              'dataroot_lq': str(folder / 'lq'), 'io_backend': {'type': 'disk'}}}}
    )  # fmt: skip
    model.validation(loader, 'tiny', None, save_img=True)
    assert len(list(Path(options['path']['visualization'], 'single').iterdir())) == 2
    assert sum(usage(log, 'single')[1]) == pytest.approx(1, abs=2e-3)  # of shares rounded to 0.1 %


def test_other_models_do_not_count_macs(folder: Path) -> None:
    options = training_options(folder) | {'is_train': False, 'network_g': dict(SRVGG)}
    with pytest.raises(OptionError, match=r'calculate_macs needs `model_type: ClassPruningModel`'):
        SRModel(copy.deepcopy(options)).validation(validation_loader(options), 'tiny', None, save_img=False)


def test_gray_images(folder: Path, log: list[str]) -> None:
    """One channel in, one out, level maps in colour."""
    options = training_options(folder)
    options['network_g'] = network_options(SRVGG | {'num_in_ch': 1, 'num_out_ch': 1})
    options['datasets']['val'] |= {'color': 'y'}
    options['val']['metrics'] = METRICS | {'psnr': METRICS['psnr'] | {'test_y_channel': False}}
    options['val']['metrics']['ssim'] = METRICS['ssim'] | {'test_y_channel': False}
    model = make_model(options, budget=0.5)
    writer = SummaryWriter(str(folder / 'tb'))
    model.validation(validation_loader(options), 1, writer, save_img=True)
    assert logged(log, 'Validation val')['psnr'] > 3
    writer.close()
