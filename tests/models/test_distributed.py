"""Two processes train as one with the whole batch."""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import set_random_seed
from training import assert_same, half_dark_batch_of, network_options, snapshot, train, training_options, write_pairs

pytestmark = pytest.mark.usefixtures('one_thread')
HERE = Path(__file__).parent


def target_between_the_halves(options: dict[str, Any], iteration: int) -> float:
    """A budget that one half of a batch keeps and the other does not, at the first step of the classifier.

    The mean of the halves' own budget losses is then not the loss of the whole batch.
    """
    set_random_seed(options['manual_seed'])
    model = build_model(copy.deepcopy(options))
    model.feed_data(half_dark_batch_of(iteration))
    with torch.no_grad():
        log_probs = model.net.predict(model.lq, 8)
        costs = model.objectives._costs().to(log_probs)
        first, second = ((half.exp() * costs.view(1, -1, 1, 1)).sum(dim=1).mean() for half in log_probs.chunk(2))
    assert abs(first - second) > 1e-5
    return float(0.75 * first + 0.25 * second)


def test_two_gloo_processes_train_as_one_with_the_whole_batch(tmp_path: Path, run, source: Path) -> None:
    """Through all stages, with clipping, EMA, the batch-wide oracle and budget; only the order of sums may differ."""
    write_pairs(tmp_path, count=1)
    all_options = {}
    for weights in ('shared', 'per_level'):
        # A larger eps than Adam's own keeps its division from blowing up what rounding does to gradients near zero.
        adam = {'type': 'Adam', 'lr': 1e-2, 'betas': [0.9, 0.99], 'eps': 1e-3}
        options = training_options(tmp_path, iters=3, ema_decay=0.9, grad_clip_norm=0.5, optim_g=adam)
        options['train'] |= {
            'ranks': {'refresh_interval': 2},
            'ramp': {'budget': [0.0, 0.0], 'confidence': [0.0, 0.0]},
        }
        options['network_g'] = network_options(weights=weights, levels=[1, 2, 3, 4])
        options['train']['budget_opt']['target'] = target_between_the_halves(options, iteration=4)
        all_options[weights] = options
    drawn = copy.deepcopy(all_options['shared'])
    drawn['train']['classifier_patches'] = 4  # the first step measures them, the next draw from each process's half
    all_options['drawn'] = drawn
    whitened = copy.deepcopy(all_options['per_level'])
    whitened['train']['stages'][0]['optim_g'] = {'type': 'WhitenedAdam', 'lr': 1e-4, 'eps': 1e-3}
    all_options['whitened'] = whitened
    for name, options in all_options.items():
        (tmp_path / f'{name}.json').write_text(json.dumps(options))
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    paths = os.pathsep.join(str(path) for path in (source, HERE.parent))
    run(*torchrun, HERE / 'distributed_steps.py', tmp_path, *all_options, cwd=tmp_path, PYTHONPATH=paths)

    for name, options in all_options.items():
        first, second = (torch.load(tmp_path / f'{name}_{rank}.pth', weights_only=False) for rank in (0, 1))
        assert_same(first['state'], second['state'])
        if name == 'drawn':  # one process alone draws others
            continue
        set_random_seed(options['manual_seed'])
        alone = build_model(options)
        logs = []
        for iteration in range(1, 10):
            train(alone, iteration, iteration, half_dark_batch_of, warmup_iter=2)
            logs.append(dict(alone.log_dict))
        for index, state in enumerate(snapshot(alone)['networks']):
            atol = 1e-5 if name == 'whitened' else 1e-6  # what triangular solves make of rounding
            torch.testing.assert_close(first['state'][index], state, rtol=1e-5, atol=atol, equal_nan=True)
        for own, other in zip(first['logs'], logs, strict=True):
            losses = {name: value for name, value in other.items() if name.startswith('l_')}
            assert losses == pytest.approx({name: own[name] for name in losses}, rel=1e-4, abs=1e-6)
