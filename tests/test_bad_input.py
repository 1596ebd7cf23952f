"""Each mistake gets an error that names the key or file and says what to do, and leaves nothing half written."""

import copy
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from training import SRVGG, build, training_options, user_options, user_test_options, write_pairs

from cp_basicsr.data.lmdb_folder import make_lmdb

pytestmark = pytest.mark.usefixtures('one_thread')

Attempt = Callable[..., str]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """Run BasicSR's train or test command in this process on an option file, to its failure; return the message."""

    def run_command(options: Mapping[str, Any], command: str = 'train') -> str:
        import basicsr.test
        import basicsr.train

        where = tmp_path / 'run'
        where.mkdir(exist_ok=True)
        path = tmp_path / 'my.yml'
        path.write_text(yaml.safe_dump(dict(options), sort_keys=False))
        monkeypatch.chdir(where)
        monkeypatch.setattr(sys, 'argv', [command, '-opt', str(path)])
        monkeypatch.setattr('torch.cuda.is_available', lambda: False)
        pipeline = basicsr.train.train_pipeline if command == 'train' else basicsr.test.test_pipeline
        with pytest.raises(Exception) as caught:
            pipeline(str(where))
        written = [found.name for found in where.rglob('*') if found.is_file()]
        assert not [name for name in written if not name.endswith(('.log', '.yml')) and 'tfevents' not in name]
        assert type(caught.value) not in (KeyError, TypeError, AttributeError, IndexError, AssertionError), caught.value
        return str(caught.value)

    return run_command


def change(block: str, **values: Any) -> Change:
    """Set keys in a block such as `network_g.sparsity` or `train.stages.1`."""

    def apply(options: dict[str, Any]) -> None:
        target: Any = options
        for part in block.split('.') if block else ():
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target.update(values)

    return apply


OPTION_ERRORS = {
    # Unknown keys, each with its nearest match.
    'network_g': (change('network_g', clasifier={}), r"'clasifier' in network_g\. Did you mean 'classifier'"),
    'sparsity': (change('network_g.sparsity', level=[1, 4]), r"'level' in network_g\.sparsity\. .*'levels'"),
    'base': (change('network_g.base', num_feats=8), r"network_g\.base \(SRVGGNetCompact\): .*'num_feats'.*num_feat"),
    'classifier': (change('network_g.classifier', num_feats=8), r"'num_feats' in network_g\.classifier\. .*'num_feat'"),
    'stage': (change('train.stages.1', iter=5), r"Unknown key 'iter' in train\.stages\[1\]\. Did you mean 'iters'"),
    'ranks': (change('train.ranks', freeze=0.5), r"Unknown key 'freeze' in train\.ranks\. Did you mean 'freeze_at'"),
    'sandwich': (change('train.sandwich', distil=1), r"'distil' in train\.sandwich\. Did you mean 'distill'"),
    'ramp': (change('train.ramp', budgets=[0, 1]), r"'budgets' in train\.ramp\. Did you mean 'budget'"),
    'joint': (change('train.joint', supernet=1), r"'supernet' in train\.joint\. Did you mean 'supernet_weight'"),
    'calibration data': (
        change('train.calibration', dataset='datasets/calib'),
        r"train\.calibration\.dataset is 'datasets/calib'; write a block as under datasets, with a type",
    ),
    'calibration': (change('train.calibration', image=3), r"'image' in train\.calibration\. Did you mean 'images'"),
    'tile': (change('val.tile', sizes=8), r"'sizes' in val\.tile\. Did you mean 'size'\? Allowed: overlap, size"),
    'budget_opt': (change('train.budget_opt', targt=0.5), r"'targt' in train\.budget_opt\. .*'target'.*loss_weight"),
    'oracle_opt': (change('train.oracle_opt', taus=0.5), r"'taus' in train\.oracle_opt\. Did you mean 'tau'"),
    'confidence_opt': (change('train.confidence_opt', weight=1), r"'weight' in train\.confidence_opt\..*'loss_weight'"),
    'train': (change('train', budget_opts={'target': 1}), r"'budget_opts'.*train.*'budget_opt'"),
    'val': (change('val', budgets=0.5), r"'budgets'.*val.*'budget'"),
    # Values.
    'levels 2:4': (change('network_g.sparsity', levels=[124]), r'levels holds 124.*at most m = 4.*2:4 as the base-60'),
    'levels "2:4"': (change('network_g.sparsity', levels=['2:4']), r"levels holds '2:4' \(str\).*2, not 2:4"),
    'unsorted': (change('network_g.sparsity', levels=[2, 1, 4]), r'levels is \[2, 1, 4\].*write \[1, 2, 4\]'),
    'repeated': (change('network_g.sparsity', levels=[1, 1, 4]), r'levels is \[1, 1, 4\].*write \[1, 4\]'),
    'N > M': (change('network_g.sparsity', levels=[1, 5]), r'levels holds 5, but N is at most m = 4'),
    'N = 0': (change('network_g.sparsity', levels=[0, 4]), r'levels holds 0; each level keeps at least 1'),
    'no dense level': (change('network_g.sparsity', levels=[1, 2]), r'levels is \[1, 2\]; .*write \[1, 2, 4\]'),
    'one level': (change('network_g.sparsity', levels=[4]), r'levels is \[4\]'),
    'no levels': (lambda options: options['network_g']['sparsity'].pop('levels'), r'sparsity\.levels is missing'),
    'm': (change('network_g.sparsity', m='4'), r"network_g\.sparsity\.m holds '4' \(str\); only integers"),
    'weights': (change('network_g.sparsity', weights='own'), r"weights is 'own'; .*'shared', 'per_level'"),
    'exclude': (change('network_g.sparsity', exclude=['bodi.*']), r"pattern 'bodi\.\*' matches no .*nearest: body"),
    'exclude text': (change('network_g.sparsity', exclude='body.2'), r"exclude is 'body\.2'; write a list"),
    'exclude number': (change('network_g.sparsity', exclude=[1]), r'exclude holds 1; write names of modules'),
    'exclude all': (change('network_g.sparsity', exclude=['body*']), r'has no layer that N:M .*excluded'),
    'base type': (change('network_g.base', type='SwinlR'), r"type is 'SwinlR', which is not registered\. .*'SwinIR'"),
    'base missing': (lambda options: options['network_g'].pop('base'), r'network_g\.base'),
    'a discriminator': (change('network_g.base', type='UNetDiscriminatorSN'), r'cannot become .*it is a discriminator'),
    'classifier type': (change('network_g.classifier', type='EDSR'), r'classifier\.type EDSR is no classifier'),
    'classifier option': (
        change('network_g', classifier={'type': 'TimmDifficultyClassifier'}),
        r"network_g\.classifier \(Timm\w+\): missing a required argument: 'model_name'\. Its options are: ",
    ),
    'classifier name': (change('network_g.classifier', type='Dificulty'), r"type is 'Dificulty', which is not"),
    'iters': (change('train', total_iter=7), r'iters 2 \+ 2 \+ 2 = 6, but train\.total_iter is 7; .*total_iter: 6'),
    'loss type': (change('train.budget_opt', type='BugetLoss'), r"budget_opt\.type is 'BugetLoss', .*'BudgetLoss'"),
    'loss of another kind': (change('train.oracle_opt', type='ConfidenceLoss'), r'is no loss of .*allowed: SoftOracle'),
    'loss of pictures': (
        change('train', budget_opt={'type': 'L1Loss'}),
        r"budget_opt\.type is 'L1Loss', which is no loss of that kind; allowed: BudgetLoss, ClassSRAverageLoss, Cl",
    ),
    'loss without type': (lambda options: options['train']['budget_opt'].pop('type'), r'budget_opt is .* with a type'),
    'loss without target': (lambda options: options['train']['budget_opt'].pop('target'), r"budget_opt .*'target'"),
    'target': (change('train.budget_opt', target=50), r'train\.budget_opt\.target is 50; allowed: a number from'),
    'tau': (change('train.oracle_opt', tau=0), r'train\.oracle_opt\.tau is 0; allowed'),
    'freeze_at': (change('train.ranks', freeze_at=66), r'train\.ranks\.freeze_at is 66; allowed: a number from 0 to 1'),
    'distill': (change('train.sandwich', distill=True), r'train\.sandwich\.distill is True'),
    'ramp order': (change('train.ramp', budget=[0.5, 0.1]), r'ramp\.budget is \[0\.5, 0\.1\]; it ends before'),
    'ramp form': (change('train.ramp', budget=0.5), r'train\.ramp\.budget is 0\.5; write the start and end'),
    'clip': (change('train', grad_clip_norm=0), r'train\.grad_clip_norm is 0; allowed'),
    'two choices': (change('val', level=0), r'val holds budget and level; they exclude each other'),
    'policy': (change('val', budget=None, policy='argmin'), r"val\.policy is 'argmin'; .*'argmax'"),
    'level': (change('val', budget=None, level='dense'), r"val\.level is 'dense'; allowed: the index"),
    'level number': (change('val', budget=None, level=3), r'level 3 does not exist'),
    'budget text': (change('val', budget='half'), r"val\.budget is 'half'; allowed: a number"),
    'tile size': (change('val.tile', size=0), r'val\.tile\.size is 0; allowed: a positive number'),
    'tile form': (change('val', tile=16), r'val\.tile is 16; write a block of keys: overlap, size'),
    'num_gpu': (change('', num_gpu=1), r'num_gpu is 1, but PyTorch finds no CUDA device; write `num_gpu: auto`'),
    'model type': (change('', network_g=SRVGG), r"network_g\.type is 'SRVGGNetCompact'; ClassPruningModel needs"),
}  # fmt: skip


@pytest.mark.parametrize('name', OPTION_ERRORS)
def test_a_wrong_option_is_named(name: str, attempt: Attempt, tmp_path: Path) -> None:
    wrong, pattern = OPTION_ERRORS[name]
    options = user_options(tmp_path)
    wrong(options)
    assert_says(pattern, attempt(options))


@pytest.mark.parametrize('name', ['levels 2:4', 'stage', 'iters', 'val', 'tile', 'network_g'])
def test_a_typing_error_does_not_move_an_earlier_experiment_away(name: str, attempt: Attempt, tmp_path: Path) -> None:
    kept = tmp_path / 'run/experiments/tiny/models/net_g_latest.log'
    kept.parent.mkdir(parents=True)
    kept.write_text('weights')
    options = user_options(tmp_path)
    OPTION_ERRORS[name][0](options)
    attempt(options)
    assert kept.read_text() == 'weights'


def assert_says(pattern: str, message: str) -> None:
    assert re.search(pattern, message, re.DOTALL), message


def broken_lmdb(folder: Path, options: dict[str, Any]) -> Path:
    """The training LMDBs of a run, whole."""
    for side in ('gt', 'lq'):
        make_lmdb(folder / side, folder / f'{side}.lmdb')
        options['datasets']['train'][f'dataroot_{side}'] = str(folder / f'{side}.lmdb')
    options['datasets']['train']['io_backend'] = {'type': 'lmdb'}
    return folder / 'lq.lmdb'


def test_a_missing_lmdb(attempt: Attempt, tmp_path: Path) -> None:
    options = user_options(tmp_path)
    shutil.rmtree(broken_lmdb(tmp_path, options))
    assert_says(r'dataset train: dataroot_lq: folder .*lq\.lmdb does not exist.*datasets/README\.md', attempt(options))


def test_a_truncated_lmdb(attempt: Attempt, tmp_path: Path) -> None:
    options = user_options(tmp_path)
    data = broken_lmdb(tmp_path, options) / 'data.mdb'
    os.truncate(data, data.stat().st_size // 2)
    assert_says(r'dataroot_lq: .*data\.mdb is truncated: .*make it again with datasets/make_lmdb\.py', attempt(options))


@pytest.mark.parametrize('command', ['train', 'test'])
def test_an_image_that_is_no_image(command: str, attempt: Attempt, tmp_path: Path) -> None:
    options = user_options(tmp_path)
    (tmp_path / 'lq/image0.png').write_text('not pixels')
    if command == 'test':
        options = user_test_options(options, None)
    assert_says(r'dataroot_lq: .*lq/image0\.png: not an image that OpenCV can read', attempt(options, command))


@pytest.mark.parametrize('command', ['train', 'test'])
def test_gt_and_lq_of_unequal_size(command: str, attempt: Attempt, tmp_path: Path) -> None:
    options = user_options(tmp_path)
    cv2.imwrite(str(tmp_path / 'gt/image0.png'), np.zeros((50, 96, 3), np.uint8))
    if command == 'test':
        options = user_test_options(options, None)
    assert_says(r'gt .*image0\.png is 96x50 and lq .* is 48x32 .*gt must be 96x64\. Make', attempt(options, command))


@pytest.mark.parametrize('command', ['train', 'calibration', 'test'])
def test_one_channel_images_for_a_three_channel_network(command: str, attempt: Attempt, tmp_path: Path) -> None:
    options = user_options(tmp_path)
    calibration = options['train']['calibration']
    calibration['dataset'] = calibration['dataset'] | ({'color': 'y'} if command == 'calibration' else {})
    for block in options['datasets'].values():
        block |= {} if command == 'calibration' else {'color': 'y'}
    if command == 'test':
        options = user_test_options(options, None)
    message = attempt(options, command.replace('calibration', 'train'))
    assert_says(r'input has 1 channel\(s\), but SRVGGNetCompact was built for 3 \(network_g\.base\)\. Convert', message)


@pytest.mark.parametrize(
    ('wrong', 'where'),
    [
        (change('val', budget=0.2), r'val\.budget is 0\.2'),
        (change('val', budget=1.5), r'val\.budget is 1\.5'),
        (change('train.budget_opt', target=0.2), r'train\.budget_opt\.target is 0\.2'),
    ],
)
def test_a_budget_that_the_levels_do_not_allow_stops_training_at_once(
    wrong: Change, where: str, attempt: Attempt, tmp_path: Path
) -> None:
    options = user_options(tmp_path)
    wrong(options)
    range_and_remedy = r', outside what the levels allow: 0\.\d+ .* to 1\.\d+ .*add sparser levels'
    assert_says(where + range_and_remedy, attempt(options))


def test_a_budget_that_the_levels_do_not_allow_in_testing(attempt: Attempt, tmp_path: Path) -> None:
    write_pairs(tmp_path, size=(64, 72))
    options = user_test_options(user_options(tmp_path), None)
    options['val']['budget'] = 0.2
    assert_says(r'val\.budget is 0\.2, outside what the levels allow', attempt(options, 'test'))


@pytest.mark.parametrize('command', ['train', 'test'])
@pytest.mark.parametrize(
    ('damage', 'pattern'),
    [
        (lambda path: path.unlink(), r"No checkpoint '.*net_g_latest\.pth'; check path\.pretrain_network_g"),
        (lambda path: os.truncate(path, 3000), r'net_g_latest\.pth is not a readable checkpoint .*truncated'),
        (lambda path: torch.save({'iter': 1}, path), r'net_g_latest\.pth holds no network weights'),
    ],
    ids=['missing', 'truncated', 'no weights'],
)
def test_a_checkpoint_that_cannot_be_read(
    command: str, damage: Callable[[Path], Any], pattern: str, attempt: Attempt, tmp_path: Path
) -> None:
    path = saved_checkpoint(tmp_path)
    damage(path)
    options = user_options(tmp_path)
    options['path']['pretrain_network_g'] = str(path)
    assert_says(pattern, attempt(user_test_options(options, path) if command == 'test' else options, command))


@pytest.mark.parametrize(
    ('wrong', 'pattern'),
    [
        (change('network_g', base={'type': 'MSRResNet', 'num_feat': 8, 'num_block': 1, 'upscale': 2}),
         r'latest\.pth: .*another network_g\.base\.type: SRVGGNetCompact, .* MSRResNet\. Set it as in the checkpoint'),
        (change('network_g.sparsity', levels=[2, 4]), r'another network_g\.sparsity\.levels: \[1, 2, 4\], .* \[2, 4\]'),
    ],
    ids=['architecture', 'levels'],
)  # fmt: skip
def test_a_checkpoint_of_another_network(wrong: Change, pattern: str, attempt: Attempt, tmp_path: Path) -> None:
    path = saved_checkpoint(tmp_path)
    options = user_test_options(user_options(tmp_path), path)
    options['network_g'] = copy.deepcopy(options['network_g'])
    wrong(options)
    assert_says(pattern, attempt(options, 'test'))


def saved_checkpoint(folder: Path) -> Path:
    model = build(training_options(folder))
    model.save_network(model.net_g, 'net_g', -1)
    return folder / 'experiments/tiny/models/net_g_latest.pth'


@pytest.mark.parametrize(
    ('text', 'pattern'),
    [
        ('levels: [2:4]', 'levels holds 124, but N is at most m = 4. Write N alone'),
        ('levels: [1, 4]\n    level: 3', "Unknown key 'level' in network_g.sparsity. Did you mean 'levels'?"),
    ],
)
def test_the_command_fails_with_the_message_last(text: str, pattern: str, run, source: Path, tmp_path: Path) -> None:
    """As typed into an option file, from another folder: exit status 1 and nothing but the log's folder made."""
    path = tmp_path / 'my.yml'
    written = yaml.safe_dump(user_options(tmp_path), sort_keys=False, default_flow_style=False)
    path.write_text(written.replace('levels:\n    - 1\n    - 2\n    - 4', text))
    assert text in path.read_text()
    (tmp_path / 'run').mkdir()
    command = [sys.executable, '-m', 'cp_basicsr.train', '-opt', path]
    result = run(*command, cwd=tmp_path / 'run', code=1, PYTHONPATH=str(source))
    assert pattern in result.stderr.splitlines()[-1]
    assert list((tmp_path / 'run').iterdir()) == []
