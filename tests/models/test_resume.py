"""A run that is stopped and resumed takes the very steps of a run left alone."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training import (
    SRVGG,
    SWINIR_RANDOM,
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

from cp_basicsr.archs.state import CheckpointError

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pairs(tmp_path, count=1)
    return tmp_path


def lq_patches(iteration: int) -> dict[str, torch.Tensor]:
    return batch_of(iteration, count=2, side=8)


@pytest.mark.parametrize(
    ('base', 'weights', 'settings'),
    [
        pytest.param(SRVGG, 'shared', {'ema_decay': 0.9, 'grad_clip_norm': 0.05}, id='SRVGG with EMA'),
        pytest.param(SRVGG, 'per_level', {'ema_decay': 0.9}, id='SRVGG per level'),
        pytest.param(
            SRVGG,
            'per_level',
            {
                'stages': [
                    {'name': 'supernet', 'iters': 4, 'optim_g': {'type': 'WhitenedAdam', 'lr': 1e-3}},
                    {'name': 'classifier', 'iters': 4},
                    {'name': 'joint', 'iters': 4},
                ],
            },
            id='SRVGG per level, whitened',
        ),
        pytest.param(SWINIR_RANDOM, 'shared', {'ema_decay': 0.9}, id='SwinIR with dropout and EMA'),
        pytest.param(
            SRVGG,
            'shared',
            {
                'scheduler': {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5},
                'stages': [
                    {'name': 'supernet', 'iters': 4},
                    {'name': 'classifier', 'iters': 4, 'scheduler': {'type': 'MultiStepRestartLR', 'milestones': [1]}},
                    {'name': 'joint', 'iters': 4, 'optim_g': {'lr': 1e-4, 'amsgrad': True}},
                ],
            },
            id='other schedulers',
        ),
    ],
)  # fmt: skip
def test_steps_after_a_resume_equal_those_of_a_run_left_alone(
    base: Mapping[str, Any], weights: str, settings: Mapping[str, Any], folder: Path
) -> None:
    """Stopped within each stage but the classifier's, after the last iteration of each, and after joint's first."""
    options = training_options(folder, base, iters=4, **settings)
    options['network_g'] = network_options(base, weights=weights)
    model, saved = build(options), {}
    for iteration in range(1, 13):
        train(model, iteration, iteration, lq_patches, warmup_iter=3)
        if iteration in (2, 4, 8, 9, 10):
            model.save(0, iteration)
        saved[iteration] = snapshot(model)

    for stop, until in {2: 5, 4: 6, 8: 10, 9: 11, 10: 12}.items():
        resumed = resume(options, stop)
        assert_same(snapshot(resumed)['networks'], saved[stop]['networks'], f'loaded at {stop}')
        torch.rand(stop)  # whatever else draws random numbers must not matter
        train(resumed, stop + 1, until, lq_patches, warmup_iter=3)
        assert_same(without_curves(snapshot(resumed)), without_curves(saved[until]), f'{stop} to {until}')


def test_a_classifier_stage_goes_on_with_patches_measured_anew(folder: Path) -> None:
    """Measured patches are no part of a checkpoint: the optimiser goes on, its next patches are measured first."""
    options = training_options(folder, iters=4, classifier_patches=4, ema_decay=0.9)
    model = build(options)
    train(model, 1, 6, lq_patches)
    model.save(0, 6)
    resumed = resume(options, 6)
    assert_same(without_curves(snapshot(resumed)), without_curves(snapshot(model)))
    runs = []
    run_level = resumed.net.run_level
    resumed.net.run_level = lambda x, level: runs.append(level) or run_level(x, level)
    train(resumed, 7, 8, lq_patches)
    assert runs == [0, 1, 2, 0, 1, 2]
    train(resumed, 9, 12, lq_patches)


def without_curves(state: dict[str, Any]) -> dict[str, Any]:
    """Curves are fitted when a checkpoint is written, and nothing is trained on them."""
    return state | {
        'networks': [
            {name: value for name, value in net.items() if not name.startswith('calibration.')}
            for net in state['networks']
        ]
    }


def test_what_is_saved_at_the_end_is_the_same_file_content(folder: Path) -> None:
    options = training_options(folder, iters=2, ema_decay=0.9)
    contents = []
    for stop in (None, 2):
        model = build(options)
        train(model, 1, 2)
        if stop:
            model.save(0, stop)
            model = resume(options, stop)
        train(model, 3, 6)
        model.save(-1, -1)
        contents.append(torch.load(Path(options['path']['models'], 'net_g_latest.pth'), weights_only=True))
    assert_same(*contents)
    assert set(contents[0]) == {'params', 'params_ema'}


def test_dropout_is_at_work_in_the_resumed_runs(folder: Path) -> None:
    """Otherwise the tests above would say nothing about random numbers."""
    options = training_options(folder, SWINIR_RANDOM, iters=4)
    results = []
    for seed in (0, 1):
        model = build(options | {'manual_seed': seed})
        train(model, 1, 1, lq_patches)
        results.append(snapshot(model)['networks'][0])
    assert not torch.equal(results[0]['base.conv_first.weight'], results[1]['base.conv_first.weight'])


def test_a_run_without_manual_seed_goes_on_with_its_own(folder: Path) -> None:
    """BasicSR draws a new seed in every process where the option file gives none."""
    options = training_options(folder, SWINIR_RANDOM, iters=4)
    model = build(options | {'manual_seed': 17})
    train(model, 1, 2, lq_patches)
    model.save(0, 2)
    train(model, 3, 3, lq_patches)
    resumed = resume(options | {'manual_seed': 4711}, 2)
    train(resumed, 3, 3, lq_patches)
    assert_same(snapshot(resumed), snapshot(model))


def test_other_stages_in_the_option_file_are_refused(folder: Path) -> None:
    options = training_options(folder, iters=2)
    model = build(options)
    train(model, 1, 4)
    model.save(0, 4)
    changed = copy.deepcopy(options)
    changed['train']['stages'] = [{'name': 'supernet', 'iters': 5}, {'name': 'joint', 'iters': 1}]
    with pytest.raises(CheckpointError, match=r"iteration 4 was saved in stage 'classifier'.*belongs to 'supernet'"):
        resume(changed, 4)
