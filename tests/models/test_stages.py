"""The stages of a run: which, how long, what learns in each, with which optimiser and scheduler."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import lr_scheduler
from training import STAGES, assert_same, batch_of, build, network_options, train, training_options, write_pairs

from cp_basicsr.models.stages import StagePlan
from cp_basicsr.options import OptionError

pytestmark = pytest.mark.usefixtures('one_thread')
ADAM = {'type': 'Adam', 'lr': 1e-3, 'weight_decay': 0, 'betas': [0.9, 0.99]}


def plan(*stages: dict[str, Any], total: int | None = None, **train: Any) -> StagePlan:
    total = sum(stage['iters'] for stage in stages) if total is None else total
    return StagePlan({'stages': list(stages), 'total_iter': total, 'optim_g': ADAM} | train)


def test_a_stage_is_chosen_by_iteration_counted_from_1() -> None:
    stages = plan(*({'name': name, 'iters': iters} for name, iters in zip(STAGES, (5, 3, 2), strict=True)))
    names = [stages.at(iteration).name for iteration in range(12)]
    assert names == ['supernet'] * 6 + ['classifier'] * 3 + ['joint'] * 3
    assert [(stage.first, stage.last) for stage in stages.stages] == [(1, 5), (6, 8), (9, 10)]
    assert [stages.stages[0].progress(iteration) for iteration in (1, 3, 5)] == [0, 0.4, 0.8]


def test_defaults_and_overrides_of_optimiser_and_scheduler() -> None:
    cosine = {'type': 'CosineAnnealingRestartLR', 'periods': [9], 'restart_weights': [1], 'eta_min': 0}
    steps = {'type': 'MultiStepLR', 'milestones': [1]}
    first, second, third = plan(
        {'name': 'supernet', 'iters': 6},
        {'name': 'classifier', 'iters': 3, 'optim_g': {'lr': 5e-3}, 'scheduler': steps},
        {'name': 'joint', 'iters': 4},
        scheduler=cosine,
    ).stages
    assert (first.optim_g, first.scheduler) == (ADAM, cosine)
    assert (second.optim_g, second.scheduler) == (ADAM | {'lr': 5e-3}, steps)
    assert third.optim_g == ADAM | {'lr': pytest.approx(1e-4)}
    assert third.scheduler | {'eta_min': 0} == cosine | {'periods': [4]}
    own = plan({'name': 'joint', 'iters': 4, 'optim_g': {'lr': 5e-3}}).stages[0]
    assert own.optim_g['lr'] == 5e-3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'stages': None}, r'train\.stages is None; write a list such as'),
        ({'stages': 'supernet'}, r"train\.stages is 'supernet'; write a list"),
        ({'stages': []}, r'train\.stages is \[\]'),
        ({'stages': ['supernet']}, r"train\.stages\[0\] is 'supernet'; write a block of keys: gt_size, iters, name"),
        ({'stages': [{'name': 'supernet', 'iter': 4}]}, r"Unknown key 'iter' in train\.stages\[0\]\. .*'iters'\?"),
        ({'stages': [{'name': 'supernets', 'iters': 4}]}, r"\[0\]\.name is 'supernets'; Did you mean 'supernet'\?"),
        ({'stages': [{'iters': 4}]}, r'stages\[0\]\.name is None'),
        ({'stages': [{'name': 'supernet', 'iters': 0}]}, r'stages\[0\]\.iters is 0; allowed: a positive integer'),
        ({'stages': [{'name': 'supernet', 'iters': 4.0}]}, r'stages\[0\]\.iters is 4\.0; allowed: a positive integer'),
        ({'stages': [{'name': 'supernet', 'iters': True}]}, r'stages\[0\]\.iters is True'),
        (
            {'stages': [{'name': 'joint', 'iters': 2}, {'name': 'classifier', 'iters': 2}]},
            r"stages\[1\]\.name is 'classifier' after 'joint'; the order is dense, supernet, classifier, joint",
        ),
        ({'stages': [{'name': 'joint', 'iters': 2}, {'name': 'joint', 'iters': 2}]}, r"is 'joint' after 'joint'"),
        ({'total_iter': 5}, r'iters 4 = 4, but train\.total_iter is 5; make them equal \(total_iter: 4\)'),
        ({'optim_g': None}, r'train\.optim_g and train\.stages\[0\]\.optim_g together are \{\}; they need a type'),
        ({'optim_g': ADAM | {'lr': '1e-4'}}, r"'lr': '1e-4'.*!!float 1e-4"),
        ({'optim_g': 'Adam'}, r"train\.optim_g is 'Adam'; write a block, for example \{type: Adam, lr: !!float 1e-4\}"),
        ({'total_iter': None}, r'iters 4 = 4, but train\.total_iter is None; make them equal'),
        (
            {'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': 4}},
            r'train\.scheduler\.periods is 4; write a list, for example `periods: \[4\]`',
        ),
        ({'scheduler': 'MultiStepLR'}, r"train\.scheduler is 'MultiStepLR'; write a block with a type"),
        (
            {'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [1, 1]}},
            r'train\.scheduler\.periods is \[1, 1\], which ends before the 4 iterations of stage supernet; .*\[4\]',
        ),
    ],
)  # fmt: skip
def test_stages_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    train = {'stages': [{'name': 'supernet', 'iters': 4}], 'total_iter': 4, 'optim_g': ADAM}
    with pytest.raises(OptionError, match=message):
        StagePlan(train | changes)


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ({'optim_g': {'type': 'Lion'}}, r'Stage joint: optimizer Lion is not supp.*optim_g is .*scheduler is'),
        ({'optim_g': {'momentum': 1}}, r"Stage joint: .*unexpected keyword argument 'momentum'"),
        ({'optim_g': {'betas': [0.9, 2]}}, r'Stage joint: Invalid beta parameter'),
        ({'scheduler': {'type': 'StepLR'}}, r'Stage joint: Scheduler StepLR is not implemented'),
        ({'scheduler': {'type': 'MultiStepLR', 'milestone': [1]}}, r'Stage joint: .*milestone'),
    ],
)
def test_a_wrong_option_of_the_last_stage_stops_the_run_before_the_first_step(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = training_options(tmp_path)
    options['train']['stages'][2] |= entry
    with pytest.raises(OptionError, match=message):
        build(options)


@pytest.mark.parametrize('weights', ['shared', 'per_level'])
def test_what_learns_in_each_stage(weights: str, tmp_path: Path) -> None:
    """Every parameter that should change does, and no other by a single bit; with per_level the base never."""
    options = training_options(tmp_path, iters=3, ema_decay=0.5)
    options['network_g'] = network_options(weights=weights)
    model = build(options)
    own = ('.level_weights.', '.level_biases.')
    learns = {
        'supernet': lambda name: (
            name.startswith('base.') and (weights == 'shared' or any(part in name for part in own))
        ),
        'classifier': lambda name: name.startswith('classifier.'),
    }
    learns['joint'] = lambda name: learns['supernet'](name) or learns['classifier'](name)
    before = copy.deepcopy(dict(model.net.named_parameters()))
    at_first = copy.deepcopy(dict(model.net.named_parameters()))
    for number, stage in enumerate(STAGES):
        train(model, 3 * number + 1, 3 * number + 3)
        assert model.stage.name == stage
        in_optimiser = {id(parameter) for group in model.optimizer_g.param_groups for parameter in group['params']}
        for name, parameter in model.net.named_parameters():
            assert torch.equal(parameter, before[name]) is not learns[stage](name), f'{stage}: {name}'
            assert (id(parameter) in in_optimiser) is learns[stage](name), f'{stage}: {name}'
        before = copy.deepcopy(dict(model.net.named_parameters()))
    if weights == 'per_level':
        for net in model._nets():
            for name, parameter in net.named_parameters():
                if name.startswith('base.') and not any(part in name for part in own):
                    assert torch.equal(parameter, at_first[name]), name


@pytest.mark.parametrize('weights', ['shared', 'per_level'])
def test_fixed_parameters_and_the_statistics_of_an_untouched_base(weights: str, tmp_path: Path) -> None:
    """What the architecture itself fixes stays. With per_level so do BatchNorm's statistics, otherwise EMA has them."""
    options = training_options(tmp_path, {'type': 'BatchNormed'}, ema_decay=0.9)
    options['network_g'] = network_options({'type': 'BatchNormed'}, weights=weights)
    model = build(options)
    batches = {'batches': lambda iteration: batch_of(iteration, scale=1)}
    before = copy.deepcopy(model.net.base)
    for first, moves in ((1, weights == 'shared'), (3, False), (5, weights == 'shared')):
        norm = copy.deepcopy(model.net.base.norm)
        train(model, first, first + 1, **batches)
        assert torch.equal(model.net.base.norm.running_mean, norm.running_mean) is not moves
    for net in model._nets():
        assert torch.equal(net.base.shift, before.shift)
        for name in ('running_mean', 'running_var'):
            assert torch.equal(getattr(net.base.norm, name), getattr(model.net.base.norm, name))
    if weights == 'per_level':
        lq = batch_of(9)['lq']
        assert torch.equal(model.net.eval()(lq, level=-1), before.eval()(lq))


def test_optimiser_and_scheduler_start_anew_with_each_stage(tmp_path: Path) -> None:
    options = training_options(
        tmp_path,
        iters=3,
        scheduler={'type': 'MultiStepRestartLR', 'milestones': [1, 2], 'gamma': 0.5},
    )
    options['train']['stages'][2]['optim_g'] = {'lr': 2e-3}
    model = build(options)
    rates, kinds = [], []
    for iteration in range(1, 10):
        train(model, iteration, iteration)
        rates += model.get_current_learning_rate()
        kinds.append(type(model.schedulers[0]))
        assert len(model.schedulers) == len(model.optimizers) == 1
        state = next(iter(model.optimizer_g.state.values()))
        assert int(state['step']) == (iteration - 1) % 3 + 1  # Adam's own count
    assert rates[:3] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    # A cosine from the start to (almost) nothing: 1, 3/4 and 1/4 of the rate at thirds of the way.
    assert rates[3:6] == pytest.approx([1e-3, 0.75e-3, 0.25e-3], rel=1e-3)
    assert rates[6:9] == pytest.approx([2e-3, 1.5e-3, 0.5e-3], rel=1e-3)
    assert kinds == [lr_scheduler.MultiStepRestartLR] * 3 + [lr_scheduler.CosineAnnealingRestartLR] * 6


def test_the_warm_up_is_the_first_stage_s(tmp_path: Path) -> None:
    model = build(training_options(tmp_path, iters=4))
    rates = []
    for iteration in range(1, 9):
        train(model, iteration, iteration, warmup_iter=3)
        rates += model.get_current_learning_rate()
    assert rates[:2] == pytest.approx([1e-3 / 3, 2e-3 / 3])
    assert rates[4] == 1e-3


def test_a_run_may_have_one_stage_only(tmp_path: Path) -> None:
    write_pairs(tmp_path, count=1)
    for name in STAGES:
        options = training_options(tmp_path, stages=[{'name': name, 'iters': 2}], total_iter=2)
        model = build(options)
        train(model, 1, 2)
        model.save(0, 2)
        assert model.stage.name == name
        assert model.net.calibration.is_fitted('tile') == (name != 'supernet')


def test_ranks_are_refreshed_until_they_freeze(tmp_path: Path) -> None:
    """Every second iteration of the supernet stage up to 6 of its 9; never again, not even in the joint stage."""
    options = training_options(tmp_path, iters=9, ema_decay=0.9, ranks={'refresh_interval': 2, 'freeze_at': 0.7})
    options['train']['optim_g'] |= {'lr': 0.02}
    model = build(options)
    options_joint = options['train']['stages'][2]
    assert options_joint['name'] == 'joint'
    history = [ranks_of(model.net)]
    flips = {}
    for iteration in range(1, 28):
        train(model, iteration, iteration)
        history.append(ranks_of(model.net))
        if 'mask_flips' in model.log_dict:
            flips[iteration] = model.log_dict['mask_flips']
        assert_same(ranks_of(model.net_g_ema), history[-1])
    changed = [iteration for iteration in range(1, 28) if history[iteration] != history[iteration - 1]]
    assert changed == [iteration for iteration, share in flips.items() if share > 0] == [2, 4, 6]
    assert 0 < flips[2] < 1


def test_flips_are_logged_until_the_stage_ends(tmp_path: Path) -> None:
    """BasicSR logs every print_freq iterations, on which a refresh need not fall."""
    options = training_options(tmp_path, iters=3, ranks={'refresh_interval': 2, 'freeze_at': 1})
    options['train']['optim_g'] |= {'lr': 0.02}
    model = build(options)
    logged = []
    for iteration in range(1, 5):
        train(model, iteration, iteration)
        logged.append(model.get_current_log().get('mask_flips'))
    assert logged[0] is None and logged[1] > 0 and logged[2] == logged[1] and logged[3] is None


@pytest.mark.parametrize(
    ('weights', 'ranks'), [('per_level', {'refresh_interval': 1}), ('shared', {'refresh_interval': 0})]
)
def test_ranks_that_never_change(weights: str, ranks: dict[str, Any], tmp_path: Path) -> None:
    """per_level: they belong to the base's own values, which stay; only the least-squares start chooses them anew."""
    options = training_options(tmp_path, iters=3, ranks=ranks, reconstruct=False)
    options['network_g'] = network_options(weights=weights)
    model = build(options)
    before = ranks_of(model.net)
    train(model, 1, 9)
    assert ranks_of(model.net) == before


def ranks_of(net: torch.nn.Module) -> list[list[int]]:
    return [buffer.flatten().tolist() for name, buffer in net.named_buffers() if name.endswith('ranks')]


def test_what_is_logged_in_each_stage(tmp_path: Path) -> None:
    model = build(training_options(tmp_path, iters=1))
    logged = {}
    for iteration, stage in enumerate(STAGES, 1):
        train(model, iteration, iteration, lambda iteration: batch_of(iteration, side=24))
        logged[stage] = model.get_current_log()
        assert all(isinstance(value, float) for value in logged[stage].values())
    pixels = {'l_pix_dense', 'l_pix_level0', 'l_pix_level1', 'l_distill_level0', 'l_distill_level1'}
    routing = {'l_oracle', 'l_budget', 'l_confidence', 'expected_cost'}
    routing |= {f'{side}_level{level}' for side in ('tiles', 'target') for level in range(3)}
    assert set(logged['supernet']) == pixels  # its one iteration is the last third: ranks are frozen
    assert set(logged['classifier']) == routing
    assert set(logged['joint']) == routing | pixels | {'l_pix_chosen'}
    for stage in ('classifier', 'joint'):
        for side in ('tiles', 'target'):
            shares = [logged[stage][f'{side}_level{level}'] for level in range(3)]
            assert sum(shares) == pytest.approx(1)
            assert all(share * 36 == pytest.approx(round(share * 36), abs=1e-4) for share in shares)  # 4 x 3 x 3 tiles
        costs = model.net.costs((3, 24, 24))
        assert costs[0] < logged[stage]['expected_cost'] < costs[-1] + 0.2
