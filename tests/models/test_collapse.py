"""A classifier that gives every tile one level is reported, if its measured target does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training import batch_of, build, resume, separate, train, training_options, write_pairs

from cp_basicsr.models import collapse

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, 'WARM_UP', 5)


def always(model: Any, level: int) -> None:
    """Make the classifier sure of one level, and keep it from learning."""
    with torch.no_grad():
        model.net.classifier.head[2].weight.zero_()
        model.net.classifier.head[2].bias.copy_(torch.eye(3)[level] * 20)


def warnings(log: list[str]) -> list[str]:
    return [entry for entry in log if entry.startswith('WARNING The classifier has collapsed')]


def options_for(folder: Path, **train: Any) -> dict[str, Any]:
    options = training_options(folder, iters=12, optim_g={'type': 'Adam', 'lr': 1e-9}, **train)
    options['train']['stages'][0]['iters'] = 1
    options['train']['total_iter'] = 25
    return options


def test_a_collapse_is_reported_once_for_each_stage_with_what_to_do(tmp_path: Path, log: list[str]) -> None:
    model = build(options_for(tmp_path))
    always(model, 2)
    train(model, 1, 5)
    assert not warnings(log)  # too early to tell
    train(model, 6, 13)
    (message,) = warnings(log)
    assert 'level 2 (4:4) takes 100.0 % of the tiles, the measured target gives it ' in message
    assert 'train.confidence_opt.loss_weight' in message and 'train.ramp.confidence' in message
    train(model, 14, 25)
    assert model.stage.name == 'joint' and len(warnings(log)) == 2


def test_a_level_that_the_target_itself_gives_everything_is_no_collapse(tmp_path: Path, log: list[str]) -> None:
    """With eta 0 quality is worth nothing, so the sparsest level is right everywhere; neither stage warns."""
    model = build(options_for(tmp_path, oracle_opt={'type': 'SoftOracleLoss', 'eta': 0}))
    always(model, 0)
    train(model, 1, 25)
    assert model.log_dict['target_level0'] == model.log_dict['tiles_level0'] == 1
    assert not warnings(log)


def test_nor_after_a_resume_in_the_joint_stage(tmp_path: Path, log: list[str]) -> None:
    write_pairs(tmp_path, count=1)
    options = options_for(tmp_path, oracle_opt={'type': 'SoftOracleLoss', 'eta': 0})
    model = build(options)
    always(model, 0)
    train(model, 1, 15)
    model.save(0, 15)
    train(resume(options, 15), 16, 25)
    assert not warnings(log)


def test_a_classifier_that_uses_its_levels_is_not_reported(tmp_path: Path, log: list[str]) -> None:
    model = build(options_for(tmp_path))
    separate(model.net.classifier, [batch_of(iteration)['lq'] for iteration in range(1, 26)], tile=8)
    train(model, 1, 25)
    assert max(model.log_dict[f'tiles_level{level}'] for level in range(3)) < 0.9
    assert not warnings(log)
