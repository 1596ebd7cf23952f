"""A per_level run from scratch: stage dense, the least-squares start of the sparse levels, and training in bfloat16."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from training import assert_same, batch_of, build, network_options, resume, snapshot, train, training_options

from cp_basicsr.options import OptionError
from cp_basicsr.sparsity import prunable_layers, starts_dense

pytestmark = pytest.mark.usefixtures('one_thread')
NAMES = ('dense', 'supernet', 'classifier')


def options_of(folder: Path, weights: str = 'per_level', iters: int = 3, **changes: Any) -> dict[str, Any]:
    stages = [{'name': name, 'iters': iters} for name in NAMES]
    options = training_options(folder, stages=stages, total_iter=iters * len(NAMES), **changes)
    options['network_g'] = network_options(weights=weights)
    return options


def values_of(net: Any) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(net.named_parameters()))


@pytest.mark.parametrize('weights', ['shared', 'per_level'])
def test_the_dense_stage_trains_the_base_network_alone_and_the_levels_start_from_it(
    weights: str, tmp_path: Path
) -> None:
    model = build(options_of(tmp_path, weights, reconstruct=False, ema_decay=0.5))
    before = values_of(model.net)
    train(model, 1, 2)
    assert set(model.log_dict) == {'l_pix_dense'}
    for name, value in model.net.named_parameters():
        own = 'level_' in name or name.startswith('classifier.')
        assert torch.equal(value, before[name]) is own, name
    train(model, 3, 3)
    for net in model._nets():
        for name, layer in prunable_layers(net.base).items():
            ranks = layer.ranks.clone()
            assert layer.refresh_ranks() == 0, name
            assert torch.equal(layer.ranks, ranks)
        assert starts_dense(net.base) is (weights == 'per_level')
    dense = {name: value for name, value in values_of(model.net).items() if 'level_' not in name}
    train(model, 4, 6)
    if weights == 'per_level':
        assert not starts_dense(model.net.base)
        assert all(torch.equal(value, model.net.get_parameter(name)) for name, value in dense.items())


def test_sparse_levels_start_from_their_fit_unless_they_have_been_trained(tmp_path: Path) -> None:
    """One iteration leaves a level at about its start, so its distance to the dense output tells where it began."""
    losses = {}
    for fit in (True, False):
        options = options_of(tmp_path, reconstruct=fit, ema_decay=0.5)
        options['train']['stages'] = [{'name': 'supernet', 'iters': 1}]
        options['train']['total_iter'] = 1
        model = build(options)
        train(model, 1, 1)
        losses[fit] = [float(model.log_dict[f'l_distill_level{level}']) for level in (0, 1)]
        if fit:
            assert_same(
                list(prunable_layers(model.net.base)['body.2'].ranks),
                list(prunable_layers(model.net_g_ema.base)['body.2'].ranks),
            )
            model.save(0, 1)
    assert all(fitted < 0.8 * plain for fitted, plain in zip(losses[True], losses[False], strict=True))

    options['train']['reconstruct'] = True
    options['path']['pretrain_network_g'] = str(tmp_path / 'experiments' / 'tiny' / 'models' / 'net_g_1.pth')
    again = build(options)
    trained = values_of(again.net)
    for group in again.optimizer_g.param_groups:
        group['lr'] = 0
    again.feed_data(batch_of(1))
    again.optimize_parameters(1)
    assert all(torch.equal(value, trained[name]) for name, value in again.net.named_parameters())


def test_levels_start_from_a_checkpoint_of_the_middle_of_the_dense_stage(tmp_path: Path) -> None:
    options = options_of(tmp_path, ema_decay=0.5)
    model = build(options)
    train(model, 1, 2)
    model.save(0, 2)
    options['path']['pretrain_network_g'] = str(tmp_path / 'experiments' / 'tiny' / 'models' / 'net_g_2.pth')
    options['train'] |= {'stages': [{'name': 'supernet', 'iters': 1}], 'total_iter': 1}
    assert all(starts_dense(net.base) for net in build(options)._nets())


def test_levels_start_from_their_fit_where_only_the_classifier_is_trained(tmp_path: Path) -> None:
    """A plain checkpoint and a classifier stage make a network without training any level."""
    outputs = {}
    lq = batch_of(7)['lq']
    for fit in (True, False):
        options = options_of(tmp_path, reconstruct=fit, ema_decay=0.5)
        options['train'] |= {'stages': [{'name': 'classifier', 'iters': 1}], 'total_iter': 1}
        model = build(options)
        train(model, 1, 1)
        with torch.no_grad():
            outputs[fit] = [model.test_net.bake(level)(lq) for level in range(3)]
        assert starts_dense(model.net.base) is not fit and not model.net.base.training
    distances = {
        fit: [float((one - dense).abs().mean()) for one in sparse] for fit, (*sparse, dense) in outputs.items()
    }
    assert all(fitted < 0.8 * plain for fitted, plain in zip(distances[True], distances[False], strict=True))


def test_resume_at_every_boundary_takes_the_same_steps(tmp_path: Path) -> None:
    options = options_of(tmp_path, iters=2, ema_decay=0.9)
    model = build(options)
    for iteration in range(1, 6):
        train(model, iteration, iteration)
        model.save(0, iteration)
    for iteration in range(1, 5):
        other = resume(options, iteration)
        train(other, iteration + 1, 5)
        other.calibrate()
        assert_same(snapshot(other), snapshot(model), f'after {iteration}')


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path: Path) -> None:
    outputs = []

    def note(module: Any, arguments: Any, output: torch.Tensor) -> None:
        outputs.append(output.dtype)

    model = build(options_of(tmp_path, precision='bf16'))
    prunable_layers(model.net.base)['body.2'].register_forward_hook(note)
    train(model, 1, 5)
    assert set(outputs) == {torch.bfloat16, torch.float32}  # the least-squares fit is taken in float32
    assert all(value.dtype == torch.float32 for value in model.net.parameters())


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"train\.precision is 'fp16'.*fp32.*bf16"):
        build(options_of(tmp_path, precision='fp16'))


def test_a_run_with_the_dense_stage_is_not_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(options_of(tmp_path))
    assert 'stays random' not in caplog.text
