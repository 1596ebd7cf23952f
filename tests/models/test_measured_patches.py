"""The classifier stage runs all levels on its first patches, then learns from those alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from references import budget_crossing, errors_of, priced_cross_entropy, worth_of
from torch import Tensor
from training import batch_of, build, train, training_options

from cp_basicsr.models.measured_patches import MeasuredPatches

pytestmark = pytest.mark.usefixtures('one_thread')
TILE = 8


def classifier_options(folder: Path, iters: int, **train: Any) -> dict[str, Any]:
    """A run of nothing but the classifier's stage."""
    stages = [{'name': 'classifier', 'iters': iters}]
    return training_options(folder, stages=stages, total_iter=iters, **train)


def watched(model: Any) -> tuple[list[int], list[Tensor]]:
    """The levels that are run, and the batches that the classifier sees, from now on."""
    runs, seen = [], []
    run_level, predict = model.net.run_level, model.net.predict
    model.net.run_level = lambda x, level: runs.append(level) or run_level(x, level)
    model.net.predict = lambda x, tile: seen.append(x) or predict(x, tile)
    return runs, seen


@pytest.mark.parametrize(('patches', 'measuring'), [(4, 1), (6, 2), (8, 2), (1000, 5)])
def test_levels_run_until_enough_patches_are_measured(patches: int, measuring: int, tmp_path: Path) -> None:
    model = build(classifier_options(tmp_path, 5, classifier_patches=patches))
    runs, seen = watched(model)
    train(model, 1, 5)
    assert runs == [0, 1, 2] * measuring
    fed = [batch_of(iteration)['lq'] for iteration in range(1, 6)]
    for iteration in range(measuring):
        torch.testing.assert_close(seen[iteration], fed[iteration], rtol=0, atol=0)
    measured = torch.cat(fed[:measuring])[:patches]
    for batch in seen[measuring:]:
        assert len(batch) == 4
        assert all(any(torch.equal(patch, one) for one in measured) for patch in batch)


@pytest.mark.parametrize('tile', [TILE, None])
def test_later_steps_learn_the_target_of_the_patches_they_draw(tile: int | None, tmp_path: Path) -> None:
    """The soft oracle of each patch by its own pixels; priced for 40 % of the span, moved to the budget."""
    tau, budget = 0.3, 0.55
    options = classifier_options(
        tmp_path,
        4,
        classifier_patches=8,
        oracle_opt={'type': 'SoftOracleLoss', 'tau': tau},
        optim_g={'type': 'Adam', 'lr': 1e-9},
    )
    options['train']['budget_opt']['target'] = budget
    options['val']['tile'] = tile and {'size': tile}
    model = build(options)
    _, seen = watched(model)
    train(model, 1, 4)

    net, shape = model.net, seen[0].shape[1:]
    costs = net.costs(shape) + net.classifier_macs(shape, tile) / net.macs(shape).dense
    patches = [(batch['lq'][i], batch['gt'][i]) for batch in map(batch_of, (1, 2)) for i in range(4)]
    plain = [net.bake(level) for level in range(3)]

    errors = [errors_of(gt[None], [network(lq[None]) for network in plain], tile and 2 * tile)[0] for lq, gt in patches]
    set_mse = float(sum(each[-1].mean() for each in errors) / len(errors))
    worths = [worth_of(each, bool(tile), set_mse) for each in errors]
    rows = torch.cat(worths)
    span = costs[-1] - costs[0]
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        spent = float((((middle * rows - costs) / (tau * span)).softmax(dim=1) @ costs).mean())
        low, high = (middle, high) if spent < costs[0] + 0.4 * span else (low, middle)
    logits = [(low * each - costs) / (tau * span) for each in worths]
    to_budget = budget_crossing(torch.cat(logits), costs, budget)
    logits = [each - to_budget * costs for each in logits]
    drawn = [index for patch in seen[3] for index, (lq, _) in enumerate(patches) if torch.equal(lq, patch)]
    with torch.no_grad():
        own = torch.cat([log_probs.flatten(1).T for log_probs in net.predict(seen[3], tile)])
    expected = priced_cross_entropy(torch.cat([logits[index] for index in drawn]), own, costs, torch.cat(logits))
    assert model.log_dict['l_oracle'] == pytest.approx(expected, rel=2e-3)


def test_patches_are_turned_as_the_dataset_turns_them_and_their_tiles_with_them() -> None:
    """Each tile of a patch holds its own number; it must still lie under the pixels that hold it too."""
    numbers = torch.arange(6 * 4.0).view(6, 1, 2, 2)
    measured = MeasuredPatches(6)
    measured.add(numbers.repeat_interleave(4, 2).repeat_interleave(4, 3), numbers)
    torch.manual_seed(0)
    for mirror, turn, most in ((False, False, 1), (True, False, 2), (False, True, 4), (True, True, 8)):
        lq, mse = measured.draw(300, mirror, turn)
        assert torch.equal(lq[..., ::4, ::4], mse)
        assert len({tuple(tiles.flatten().tolist()) for tiles in mse}) == 6 * most


def test_patches_that_are_not_square_keep_their_shape() -> None:
    numbers = torch.arange(6.0).view(1, 1, 2, 3)
    measured = MeasuredPatches(1)
    measured.add(numbers, numbers)
    torch.manual_seed(0)
    lq, mse = measured.draw(100, mirror=True, turn=True)
    assert lq.shape == (100, 1, 2, 3) and torch.equal(lq, mse)
    assert len({tuple(patch.flatten().tolist()) for patch in lq}) == 4


def test_the_dataset_s_own_options_say_whether_patches_are_turned(tmp_path: Path) -> None:
    options = classifier_options(tmp_path, 3, classifier_patches=4)
    options['datasets']['train'] = {'use_hflip': True, 'use_rot': False}
    model = build(options)
    _, seen = watched(model)
    train(model, 1, 3)
    fed = seen[0]
    patches = torch.cat(seen[1:])
    allowed = torch.cat([fed, fed.flip(-1)])
    assert all(any(torch.equal(patch, one) for one in allowed) for patch in patches)
    assert any(not any(torch.equal(patch, one) for one in fed) for patch in patches)


def test_without_an_oracle_no_level_is_run(tmp_path: Path) -> None:
    options = classifier_options(tmp_path, 2)
    options['train']['oracle_opt'] = None
    model = build(options)
    runs, seen = watched(model)
    train(model, 1, 2)
    assert not runs and torch.equal(seen[1], batch_of(2)['lq'])


def test_the_joint_stage_measures_its_own_batch_and_forgets_the_patches(tmp_path: Path) -> None:
    model = build(training_options(tmp_path, classifier_patches=4))
    train(model, 1, 4)
    assert model.objectives._measured.complete
    runs, seen = watched(model)
    train(model, 5, 6)
    assert model.objectives._measured is None and runs == [0, 1, 2] * 2
    assert torch.equal(seen[1], batch_of(6)['lq'])


@pytest.mark.parametrize(('tile', 'turned'), [(8, True), (5, False)])
def test_patches_that_tiles_do_not_divide_are_neither_turned_nor_mirrored(
    tile: int, turned: bool, tmp_path: Path
) -> None:
    """Patches of 16: of tiles of 5 the last is cut, and it would be the first of a mirrored one."""
    options = classifier_options(tmp_path, 6, classifier_patches=4)
    options['datasets']['train'] = {'use_hflip': True, 'use_rot': True}
    options['val']['tile'] = {'size': tile}
    model = build(options)
    _, seen = watched(model)
    train(model, 1, 6)
    measured = batch_of(1)['lq']
    drawn = torch.cat(seen[1:])
    as_they_were = [any(torch.equal(patch, one) for one in measured) for patch in drawn]
    assert len(drawn) == 20 and all(as_they_were) != turned
