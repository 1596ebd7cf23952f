"""The losses of each stage against the formulas, computed with plain baked networks and loops over tiles."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from references import errors_of, priced_cross_entropy, worth_of
from torch import Tensor
from training import Batch, batch_of, build, half_dark_batch_of, network_options, train, training_options

from cp_basicsr.models.training_options import ramped

pytestmark = pytest.mark.usefixtures('one_thread')
TILE = 8
SCALE = 2
PIXELS = SCALE * TILE


def baked_outputs(model, lq: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [model.net.bake(level)(lq) for level in range(len(model.net.levels))]


def tiles_of(image: Tensor) -> list[Tensor]:
    """Tiles of `[C, H, W]` at output resolution in raster order."""
    return [
        image[:, top : top + PIXELS, left : left + PIXELS]
        for top in range(0, image.shape[1], PIXELS)
        for left in range(0, image.shape[2], PIXELS)
    ]


def with_dense_mask_losses(outputs: list[Tensor], gt: Tensor, distill: float) -> dict[str, float]:
    losses = {'l_pix_dense': F.l1_loss(outputs[-1], gt)}
    for level, output in enumerate(outputs[:-1]):
        losses[f'l_pix_level{level}'] = (1 - distill) * F.l1_loss(output, gt)
        if distill:
            losses[f'l_distill_level{level}'] = distill * F.l1_loss(output, outputs[-1])
    return {name: float(loss) for name, loss in losses.items()}


@pytest.mark.parametrize('distill', [0, 0.25])
def test_supernet_is_the_sandwich(distill: float, tmp_path: Path) -> None:
    model = build(training_options(tmp_path, sandwich={'distill': distill}))
    data = batch_of(1)
    expected = with_dense_mask_losses(baked_outputs(model, data['lq']), data['gt'], distill)
    train(model, 1, 1)
    logged = {name: value for name, value in model.log_dict.items() if name.startswith('l_')}
    assert logged == pytest.approx(expected, rel=1e-4)


def test_sparse_levels_follow_the_dense_one_and_not_it_them(tmp_path: Path) -> None:
    """The gradient of the last bias, which all levels share, by hand: distillation gives the dense output none."""
    distill = 0.5
    model = build(training_options(tmp_path, sandwich={'distill': distill}))
    data = batch_of(1)
    outputs, gt = baked_outputs(model, data['lq']), data['gt']
    slopes = (outputs[-1] - gt).sign()
    for output in outputs[:-1]:
        slopes = slopes + (1 - distill) * (output - gt).sign() + distill * (output - outputs[-1]).sign()
    expected = F.pixel_unshuffle(slopes / gt.numel(), SCALE).sum(dim=(0, 2, 3))
    train(model, 1, 1)
    torch.testing.assert_close(model.net.base.body[-1].bias.grad, expected, rtol=1e-3, atol=1e-5)


def test_supernet_visits_every_level_between_and_always_both_ends(tmp_path: Path) -> None:
    options = training_options(tmp_path, iters=30)
    options['network_g']['sparsity']['levels'] = [1, 2, 3, 4]
    model = build(options)
    seen = []
    for iteration in range(1, 31):
        train(model, iteration, iteration, lambda iteration: batch_of(iteration, count=2, side=8))
        seen.append({name for name in model.log_dict if name.startswith('l_pix')})
    assert all({'l_pix_dense', 'l_pix_level0'} < names and len(names) == 3 for names in seen)
    middle = [('l_pix_level1' in names) for names in seen]
    assert 5 < sum(middle) < 25


def test_levels_with_values_of_their_own_take_turns(tmp_path: Path) -> None:
    options = training_options(tmp_path, iters=30)
    options['network_g'] = network_options(levels=[1, 2, 3, 4], weights='per_level')
    model = build(options)
    seen = []
    for iteration in range(1, 31):
        train(model, iteration, iteration, lambda iteration: batch_of(iteration, count=2, side=8))
        seen.append({name.removeprefix('l_distill_level') for name in model.log_dict if name.startswith('l_distill')})
    assert all(len(levels) == 2 for levels in seen)
    assert all(12 < sum(level in levels for levels in seen) < 28 for level in '012')


def test_a_loss_against_the_dense_output_alone_asks_for_no_gt(tmp_path: Path) -> None:
    """With `distill: 1` levels and mixed maps come closer to the dense output, whatever the true image is."""
    options = training_options(tmp_path, sandwich={'distill': 1.0, 'mixed': 1.0})
    options['network_g'] = network_options(weights='per_level')
    gradients = []
    for shift in (0.0, 0.3):
        model = build(copy.deepcopy(options))
        train(model, 1, 1, lambda iteration, shift=shift: (data := batch_of(iteration)) | {'gt': data['gt'] + shift})
        assert {'l_distill_level0', 'l_distill_level1', 'l_distill_mixed'} <= model.log_dict.keys()
        gradients.append(model.net.base.body[2].level_weights[0].grad.clone())
    assert torch.equal(*gradients) and gradients[0].any()


def test_mixed_levels_are_trained_on_a_map_of_each_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `sandwich.mixed` a further output follows a random map; a map of one level gives that level's loss."""
    model = build(training_options(tmp_path, sandwich={'distill': 0.0, 'mixed': 0.5}))
    train(model, 1, 1)
    assert model.log_dict['l_pix_mixed'] > 0
    levels, tile = model.objectives._random_map()
    assert tile == TILE and levels.shape == (4, 2, 2) and set(levels.unique().tolist()) <= {0, 1, 2}
    for level, name in ((2, 'dense'), (0, 'level0')):
        uniform = torch.full_like(levels, level)
        monkeypatch.setattr(model.objectives, '_random_map', lambda uniform=uniform: (uniform, TILE))
        train(model, 2, 2)
        assert model.log_dict['l_pix_mixed'] == pytest.approx(0.5 * model.log_dict[f'l_pix_{name}'], rel=1e-5)


def test_mixed_levels_need_tiles(tmp_path: Path) -> None:
    options = training_options(tmp_path, sandwich={'mixed': 1.0})
    options['val']['tile'] = None
    model = build(options)
    train(model, 1, 1)
    assert 'l_pix_mixed' not in model.log_dict


def test_two_levels_have_nothing_between(tmp_path: Path) -> None:
    options = training_options(tmp_path, budget_opt={'type': 'BudgetLoss', 'target': 0.8})
    options['network_g']['sparsity']['levels'] = [2, 4]
    model = build(options)
    train(model, 1, 6)
    assert model.stage.name == 'joint'


@pytest.mark.parametrize('tile', [TILE, None])
def test_the_classifier_s_target_is_the_measured_soft_oracle(tile: int | None, tmp_path: Path) -> None:
    """CE(q, P), q = softmax((eta PSNR_k - cost_k) / (tau span)) for each tile, with the auxiliary losses, all by loops.

    The errors are measured against those of all batches of the stage: this is its second.
    """
    tau, eta, target = 0.2, 0.05, 0.6
    options = training_options(tmp_path, oracle_opt={'type': 'SoftOracleLoss', 'tau': tau, 'eta': eta})
    options['train'] |= {'ramp': {'budget': [0, 0.5], 'confidence': [0.5, 1.0]}}
    options['val']['tile'] = tile and {'size': tile}
    model = build(options)
    train(model, 1, 3)
    data = batch_of(4)
    net = model.net
    shape = data['lq'].shape[1:]
    costs = net.costs(shape) + net.classifier_macs(shape, tile) / net.macs(shape).dense
    with torch.no_grad():
        probabilities = net.predict(data['lq'], tile).exp().double()

    before = batch_of(3)
    errors = [
        (images, errors_of(images['gt'], baked_outputs(model, images['lq']), tile and PIXELS))
        for images in (before, data)
    ]
    dense = [patch[-1].mean() for _, patches in errors for patch in patches]
    set_mse = float(sum(dense) / len(dense))
    tau *= costs[-1] - costs[0]
    logits = [(eta * worth_of(patch, bool(tile), set_mse) - costs) / tau for _, patches in errors for patch in patches]
    of_all = torch.cat(logits)
    own = torch.cat([probabilities[index].flatten(1).T.log() for index in range(len(data['lq']))])
    of_this = torch.cat(logits[len(before['lq']) :])

    expected_cost, undecided, wins, favourites = [], [], [0, 0, 0], [0, 0, 0]
    for q, log_p in zip(of_this, own, strict=True):
        p = log_p.exp()
        expected_cost.append((p * costs).sum())
        undecided.append(2 - (p[0] - p[1]).abs() - (p[0] - p[2]).abs() - (p[1] - p[2]).abs())
        wins[int(p.argmax())] += 1
        favourites[int(q.argmax())] += 1

    mean_cost = torch.stack(expected_cost).mean()
    count = len(expected_cost)
    expected = {
        'l_oracle': priced_cross_entropy(of_this, own, costs, of_all),
        'l_budget': (mean_cost - target).abs() / target,  # at progress 0.5 the budget's ramp is over
        'l_confidence': 0.1 * 0.0 * torch.stack(undecided).mean(),  # and the other begins
        'expected_cost': mean_cost,
    }
    expected |= {f'tiles_level{k}': wins[k] / count for k in range(3)}
    expected |= {f'target_level{k}': favourites[k] / count for k in range(3)}
    train(model, 4, 4)
    assert model.log_dict == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4, abs=1e-7)


def test_without_eta_the_target_itself_spends_the_budget(tmp_path: Path) -> None:
    """Then the oracle and the budget loss never pull apart."""
    options = training_options(tmp_path, oracle_opt={'type': 'SoftOracleLoss', 'tau': 0.1})
    options['train']['budget_opt']['target'] = (
        0.5  # of a network that has learnt nothing the densest level is no better
    )
    model = build(options)
    train(model, 1, 3)
    data = batch_of(4)
    outputs = {level: output for level, output in enumerate(baked_outputs(model, data['lq']))}
    model.feed_data(data)
    errors = model.objectives._errors(outputs)
    model.objectives._set_prices(errors)
    target = model.objectives._target(errors).exp()
    shape = data['lq'].shape[1:]
    costs = model.net.costs(shape) + model.net.classifier_macs(shape, TILE) / model.net.macs(shape).dense
    assert float((target.double() @ costs).mean()) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize('tile', [TILE, None])
def test_joint_takes_the_loss_on_the_chosen_output(tile: int | None, tmp_path: Path) -> None:
    weight = 0.3
    options = training_options(tmp_path, joint={'supernet_weight': weight})
    options['val']['tile'] = tile and {'size': tile}
    model = build(options)
    train(model, 1, 4)
    data = batch_of(5)
    outputs = baked_outputs(model, data['lq'])
    with torch.no_grad():
        levels = model.net.predict(data['lq'], tile).argmax(dim=1)
    difference = 0.0
    for index in range(len(data['lq'])):
        gt_tiles = tiles_of(data['gt'][index]) if tile else [data['gt'][index]]
        for place, gt in enumerate(gt_tiles):
            image = outputs[int(levels[index].flatten()[place])][index]
            chosen = tiles_of(image)[place] if tile else image
            difference += float((chosen - gt).abs().sum())
    expected = {'l_pix_chosen': difference / data['gt'].numel()}
    expected |= {name: weight * loss for name, loss in with_dense_mask_losses(outputs, data['gt'], 0.5).items()}
    train(model, 5, 5)
    logged = {name: model.log_dict[name] for name in expected}
    assert logged == pytest.approx(expected, rel=1e-4)


def test_joint_teaches_classifier_and_supernet_through_the_choice(tmp_path: Path) -> None:
    """The choice is hard going forward, but the classifier still gets the gradient of its probabilities."""
    oracle = {'type': 'SoftOracleLoss', 'loss_weight': 0.0}
    alone = {'joint': {'supernet_weight': 0}, 'budget_opt': None, 'confidence_opt': None, 'oracle_opt': oracle}
    model = build(training_options(tmp_path, **alone))
    train(model, 1, 5)
    assert {name for name in model.log_dict if name.startswith('l_') and model.log_dict[name]} == {'l_pix_chosen'}
    gradients = {name: parameter.grad for name, parameter in model.net.named_parameters()}
    assert gradients['classifier.head.2.weight'].abs().max() > 0
    assert gradients['base.body.2.weight'].abs().max() > 0


def test_joint_keeps_the_measured_target(tmp_path: Path) -> None:
    """The auxiliary losses alone are content with one middle level everywhere."""
    model = build(training_options(tmp_path))
    train(model, 1, 5)
    assert model.log_dict['l_oracle'] > 0


def test_the_classifier_learns_which_tiles_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With known truth, each level worth 3 dB on rough bright tiles and nothing on others, it finds them."""

    def half_rough_batch_of(iteration: int) -> Batch:
        noise = torch.Generator().manual_seed(iteration)
        halves = half_dark_batch_of(iteration)
        return {
            name: torch.cat([images[:2], 0.5 + 0.4 * torch.rand(images[2:].shape, generator=noise)])
            for name, images in halves.items()
        }

    def known_mse(output: Tensor, gt: Tensor, side: int) -> Tensor:
        return 1e-3 * 10 ** (-0.3 * level_of[output.data_ptr()] * (F.avg_pool2d(gt.mean(dim=1), side) > 0.3))

    level_of: dict[int, int] = {}
    monkeypatch.setattr('cp_basicsr.models.objectives.tile_mse', known_mse)
    stages = [{'name': 'classifier', 'iters': 60}]
    options = training_options(tmp_path, stages=stages, total_iter=60, optim_g={'type': 'Adam', 'lr': 5e-3})
    options['train']['oracle_opt']['tau'] = 0.1
    model = build(options)
    run_level = model.net.run_level

    def remember(x: Tensor, level: int) -> Tensor:
        outputs.append(run_level(x, level))
        level_of[outputs[-1].data_ptr()] = level
        return outputs[-1]

    outputs: list[Tensor] = []
    monkeypatch.setattr(model.net, 'run_level', remember)
    train(model, 1, 60, half_rough_batch_of)
    assert model.log_dict['expected_cost'] == pytest.approx(0.6, abs=0.05)
    with torch.no_grad():
        levels = model.net.eval().predict(half_rough_batch_of(1000)['lq'], TILE).argmax(dim=1)
    assert (levels[:2] == 0).all() and (levels[2:] >= 1).all()


def test_targets_are_measured_without_dropout(tmp_path: Path) -> None:
    """The supernet is in eval mode while the classifier learns, and in training mode before and after."""
    model = build(training_options(tmp_path))
    modes = []
    for iteration in (1, 3, 5):
        train(model, iteration, iteration + 1)
        modes.append((model.net.base.training, model.net.classifier.training))
    assert modes == [(True, True), (False, True), (True, True)]


@pytest.mark.parametrize(('progress', 'weight'), [(0, 0), (0.2, 0), (0.35, 0.5), (0.5, 1), (1, 1)])
def test_ramp(progress: float, weight: float) -> None:
    assert ramped((0.2, 0.5), progress) == pytest.approx(weight)


def test_a_ramp_may_be_a_step() -> None:
    assert [ramped((0.5, 0.5), progress) for progress in (0.49, 0.5)] == [0, 1]
