"""One training step: BasicSR's losses and schedulers, EMA, clipping, and numbers that are not finite."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from torch import Tensor, nn
from training import (
    SRVGG,
    assert_same,
    batch_of,
    build,
    network_options,
    resume,
    snapshot,
    train,
    training_options,
    write_pairs,
)

from cp_basicsr.models.class_pruning_model import NonFiniteError
from cp_basicsr.options import OptionError
from cp_basicsr.sparsity import PatternError

pytestmark = pytest.mark.usefixtures('one_thread')


@LOSS_REGISTRY.register()
class StubPerceptualLoss(nn.Module):
    """Has PerceptualLoss's calling convention, but no VGG weights to download."""

    def __init__(self, style_weight: float = 0.0) -> None:
        super().__init__()
        self.style_weight = style_weight

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, Tensor | None]:
        style = self.style_weight * (x.mean() - gt.mean()).square() if self.style_weight else None
        return (x.diff() - gt.diff()).abs().mean(), style


@ARCH_REGISTRY.register()
class TinyVideo(nn.Module):
    """Restores every frame of a clip with its neighbours in mind, at scale 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 16, 3, padding=1)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.cat([x, x.roll(1, dims=1)], dim=2)
        return self.last(self.first(pairs.flatten(0, 1))).unflatten(0, x.shape[:2])


@pytest.mark.parametrize(
    'losses',
    [
        {'pixel_opt': {'type': 'L1Loss', 'loss_weight': 0.5, 'reduction': 'sum'}},
        {'pixel_opt': {'type': 'MSELoss', 'loss_weight': 1.0, 'reduction': 'mean'}},
        {'pixel_opt': {'type': 'CharbonnierLoss', 'loss_weight': 1.0, 'reduction': 'mean', 'eps': 1e-9}},
        {'pixel_opt': {'type': 'WeightedTVLoss', 'loss_weight': 1.0}},
        {'perceptual_opt': {'type': 'StubPerceptualLoss'}},
        {'pixel_opt': None, 'perceptual_opt': {'type': 'StubPerceptualLoss', 'style_weight': 2.0}},
    ],
    ids=lambda losses: ' '.join(str(block and block['type']) for block in losses.values()),
)
def test_every_loss_that_srmodel_takes(losses: dict[str, Any], tmp_path: Path) -> None:
    """The logged dense loss is the one that SRModel computes on the dense output, and all stages learn with it."""
    options = training_options(tmp_path, **losses)
    model = build(options)
    data = batch_of(1)
    dense = model.net.bake(-1)(data['lq'])
    expected = {}
    if model.cri_pix:
        expected['l_pix_dense'] = model.cri_pix(dense, data['gt'])
    if model.cri_perceptual:
        perceptual, style = model.cri_perceptual(dense, data['gt'])
        expected |= {'l_percep_dense': perceptual} | ({} if style is None else {'l_style_dense': style})
    before = snapshot(model)['networks'][0]
    train(model, 1, 1)
    logged = {name: value for name, value in model.log_dict.items() if name.endswith('_dense')}
    assert logged == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    train(model, 2, 6)
    assert not torch.equal(model.net.base.body[2].weight, before['base.body.2.weight'])
    assert ('l_pix_chosen' in model.log_dict) == bool(model.cri_pix)
    assert ('l_percep_chosen' in model.log_dict) == bool(model.cri_perceptual)


def test_without_any_restoration_loss_srmodel_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='Both pixel and perceptual losses are None'):
        build(training_options(tmp_path, pixel_opt=None))


@pytest.mark.parametrize(
    'scheduler',
    [
        {'type': 'MultiStepLR', 'milestones': [1, 3], 'gamma': 0.5},
        {'type': 'MultiStepRestartLR', 'milestones': [1], 'restarts': [0, 3], 'restart_weights': [1, 0.5]},
        {'type': 'CosineAnnealingRestartLR', 'periods': [2, 3], 'restart_weights': [1, 0.5], 'eta_min': 1e-6},
    ],
    ids=lambda scheduler: scheduler['type'],
)
def test_every_scheduler_of_srmodel_gives_the_supernet_srmodel_s_rates(
    scheduler: dict[str, Any], tmp_path: Path
) -> None:
    from basicsr.models.sr_model import SRModel

    options = training_options(tmp_path, iters=5, scheduler=scheduler)
    model = build(options)
    plain = SRModel(copy.deepcopy(options) | {'network_g': dict(SRVGG)})
    for iteration in range(1, 6):
        for one in (model, plain):
            one.update_learning_rate(iteration, warmup_iter=3)
        assert model.get_current_learning_rate() == plain.get_current_learning_rate()


def test_the_classifier_learns_without_auxiliary_losses_and_its_target_is_the_default(tmp_path: Path) -> None:
    """An option file that names no oracle loss has it all the same: nothing else tells which level pays."""
    options = training_options(tmp_path, oracle_opt=None, budget_opt=None, confidence_opt=None)
    model = build(options)
    train(model, 1, 4)
    assert [name for name in model.log_dict if name.startswith('l_')] == ['l_oracle']


def test_a_classifier_stage_without_any_loss_is_refused(tmp_path: Path) -> None:
    options = training_options(tmp_path, budget_opt=None, confidence_opt=None)
    options['train']['oracle_opt'] = None
    with pytest.raises(
        OptionError, match=r'train\.stages holds a classifier stage, but .*oracle_opt.*nothing to learn'
    ):
        build(options)


def test_class_sr_losses_train_without_an_oracle(tmp_path: Path) -> None:
    options = training_options(tmp_path, budget_opt={'type': 'ClassSRAverageLoss'})
    options['train'] |= {'oracle_opt': None, 'confidence_opt': {'type': 'ClassSRClassLoss'}}
    model = build(options)
    train(model, 1, 6)
    assert {'l_budget', 'l_confidence'} <= set(model.log_dict)
    assert not any(name.startswith('target_') for name in model.log_dict)


def test_ema_is_the_average_of_the_weights_and_starts_as_their_copy(tmp_path: Path) -> None:
    decay = 0.8
    model = build(training_options(tmp_path, ema_decay=decay))
    average = {name: value.clone() for name, value in model.net.named_parameters()}
    assert_same(average, {name: value.clone() for name, value in model.net_g_ema.named_parameters()})
    for iteration in range(1, 7):
        train(model, iteration, iteration)
        for name, value in model.net.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * value.detach()
    found = {name: value.detach() for name, value in model.net_g_ema.named_parameters()}
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-7)


def test_the_ema_has_the_statistics_of_a_classifier_with_batchnorm(tmp_path: Path) -> None:
    """Averaged weights with the statistics of a network that was never trained would predict nonsense."""
    options = training_options(tmp_path, ema_decay=0.9, budget_opt=None)
    options['network_g']['classifier'] = {'type': 'TimmDifficultyClassifier', 'model_name': 'test_resnet'}
    options['val']['tile'] = None
    model = build(options)
    train(model, 1, 4, lambda iteration: batch_of(iteration, side=32))
    own, ema = (dict(net.classifier.named_buffers()) for net in (model.net, model.net_g_ema))
    assert any(name.endswith('running_mean') and value.abs().max() > 0 for name, value in own.items())
    assert_same(ema, own)


def test_gradient_clipping(tmp_path: Path) -> None:
    """The norm of the whole gradient is cut to the limit, its direction stays; above it nothing changes."""

    def gradient(clip: float | None) -> Tensor:
        model = build(training_options(tmp_path, grad_clip_norm=clip))
        train(model, 1, 1)
        return torch.cat([parameter.grad.flatten() for parameter in model.net.base.parameters()])

    free = gradient(None)
    norm = float(free.norm())
    cut = gradient(norm / 3)
    assert float(cut.norm()) == pytest.approx(norm / 3, rel=1e-4)
    torch.testing.assert_close(cut, free / 3, rtol=1e-4, atol=1e-8)
    assert torch.equal(gradient(2 * norm), free)


@pytest.mark.parametrize('iteration', [2, 4, 6], ids=['supernet', 'classifier', 'joint'])
@pytest.mark.parametrize(('image', 'value'), [('lq', float('nan')), ('gt', float('nan')), ('lq', float('inf'))])
def test_a_broken_image_stops_the_run_and_touches_nothing(
    iteration: int, image: str, value: float, tmp_path: Path
) -> None:
    write_pairs(tmp_path, count=1)
    options = training_options(tmp_path, ema_decay=0.9)
    model = build(options)
    train(model, 1, iteration - 1)
    model.save(0, iteration - 1)
    files = {path: path.read_bytes() for path in tmp_path.rglob('experiments/**/*') if path.is_file()}
    before = snapshot(model)

    broken = batch_of(iteration)
    broken[image][1, 2, 3, 4] = value
    stage = model.training_options.plan.at(iteration).name
    message = rf'Iteration {iteration} \({stage} stage\): .*l_\w+ nan.* is nan\. The weights were not touched'
    with pytest.raises(NonFiniteError, match=message) as caught:
        train(model, iteration, iteration, lambda _: broken)
    assert options['path']['models'] in str(caught.value) and '--auto_resume' in str(caught.value)
    after = snapshot(model)
    assert_same(after['networks'], before['networks'])
    if model.stage.first != iteration:
        assert_same(
            [state['state'] for state in after['optimizers']], [state['state'] for state in before['optimizers']]
        )
    assert {path: path.read_bytes() for path in files} == files
    assert_same(snapshot(resume(options, iteration - 1))['networks'], before['networks'])


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """The loss may be finite where its gradient is not: the square root of Charbonnier's loss at 0, say."""

    class Root(nn.Module):
        def forward(self, x: Tensor, gt: Tensor) -> Tensor:
            return ((x - gt) * 0).abs().mean().sqrt() + x.mean()

    model = build(training_options(tmp_path))
    model.cri_pix = Root()
    before = snapshot(model)['networks']
    with pytest.raises(NonFiniteError, match=r'Iteration 1 \(supernet stage\): the norm of the gradient.* is nan'):
        train(model, 1, 1)
    assert_same(snapshot(model)['networks'], before)


def test_a_video_network_trains_through_all_stages(tmp_path: Path) -> None:
    """5-D batches are routed as a whole."""
    options = training_options(tmp_path, {'type': 'TinyVideo'}, iters=1)
    options['train']['pixel_opt'] = {'type': 'CharbonnierLoss'}
    model = build(options)

    def clip(iteration: int) -> dict[str, Tensor]:
        frames = batch_of(iteration, count=6)
        return {name: images.unflatten(0, (2, 3)) for name, images in frames.items()}

    train(model, 1, 3, clip)
    assert model.stage.name == 'joint'
    assert sum(model.log_dict[f'target_level{level}'] for level in range(3)) == pytest.approx(1)


@pytest.mark.parametrize(
    ('val', 'error', 'message'),
    [
        ({'level': 3}, PatternError, r'level 3 does not exist: .*numbered 0 \(sparsest\) to 2 \(densest\)'),
        ({'level': -4}, PatternError, r'level -4 does not exist'),
        ({'tile': {'size': 8}}, OptionError, r'predicts whole images, but val\.tile asks for tiles of 8: .*`tile: ~`'),
    ],
)
@pytest.mark.parametrize('is_train', [True, False])
def test_what_the_first_validation_could_not_do_is_refused_at_once(
    val: dict[str, Any], error: type[Exception], message: str, is_train: bool, tmp_path: Path
) -> None:
    options = training_options(tmp_path)
    options['network_g']['classifier'] = {'type': 'TimmDifficultyClassifier', 'model_name': 'test_resnet'}
    options['val'] |= {'tile': None} | val
    with pytest.raises(error, match=message):
        build(options | {'is_train': is_train})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_gpu': 1}, r'num_gpu is 1, but PyTorch finds no CUDA device; write `num_gpu: auto`'),
        ({'network_g': SRVGG}, r"network_g\.type is 'SRVGGNetCompact'; ClassPruningModel needs ClassPruningNet"),
    ],
)
def test_a_model_that_cannot_be_built(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(OptionError, match=message):
        build(training_options(tmp_path) | changes)


def test_a_dense_level_that_would_stay_random_is_warned_of(tmp_path: Path, log: list[str]) -> None:
    options = training_options(tmp_path)
    options['network_g'] = network_options(weights='per_level')
    build(options)
    assert any(re.match(r'WARNING network_g\.sparsity\.weights is per_level without', entry) for entry in log)
    log.clear()
    plain = build(training_options(tmp_path)).net.bake(-1)
    torch.save({'params': plain.state_dict()}, tmp_path / 'plain.pth')
    options['path']['pretrain_network_g'] = str(tmp_path / 'plain.pth')
    build(options)
    assert not any(entry.startswith('WARNING') for entry in log)
