"""README's results again: every run is complete and can be read, and a run trains, tests and goes on."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from training import user_options

from cp_basicsr.models.option_check import check_options
from cp_basicsr.models.training_options import TrainingOptions
from cp_basicsr.options import OptionError
from cp_basicsr.tools import reproduce
from cp_basicsr.tools.reproducing.plan import FILE, Curve, Run, merged, read_run, run_names

BLOCKS = st.recursive(st.integers(), lambda values: st.dictionaries(st.sampled_from('abc'), values, max_size=3))


@pytest.fixture(params=run_names())
def run(request: pytest.FixtureRequest) -> Run:
    return read_run(request.param)


def datasets_of(run: Run) -> list[dict[str, Any]]:
    train = run.train
    return [*train['datasets'].values(), train['train']['calibration']['dataset'], *run.sets.values()]


def test_every_run_is_a_training_that_the_model_takes(run: Run) -> None:
    opt = copy.deepcopy(run.train) | {'is_train': True}
    check_options(opt)
    options = TrainingOptions.read(opt['train'])
    assert options.plan.stages[-1].name in ('classifier', 'joint') and options.calibration
    levels = opt['network_g']['sparsity']['levels']
    assert levels[-1] == opt['network_g']['sparsity']['m'] and run.train['name'] == run.name
    assert run.budgets and {'random', 'oracle', 'edge'} <= set(run.controls)


def test_every_run_finds_its_data_where_the_page_about_data_puts_them(run: Run) -> None:
    page = (Path(__file__).parents[2] / 'datasets/README.md').read_text()
    for block in datasets_of(run):
        for key, value in block.items():
            if key.startswith('dataroot_'):
                assert '{' not in value and value.startswith('datasets/') and value.split('/')[1] in page
    start = run.train['path']['pretrain_network_g']
    assert start is None or start.startswith('experiments/')
    assert (start is None) == (run.train['train']['stages'][0]['name'] == 'dense')


def test_a_curve_asks_for_checkpoints_that_are_saved(run: Run) -> None:
    every, last = run.train['logger']['save_checkpoint_freq'], run.train['train']['total_iter']
    if run.curve:
        assert run.curve.set in run.sets and run.curve.images > 0
        assert all(0 < iteration < last and iteration % every == 0 for iteration in run.curve.checkpoints)


def test_every_run_can_meet_the_budget_it_is_trained_for(run: Run) -> None:
    """The sparsest level alone must cost less: its share of the weights, without what cannot be pruned."""
    budget = run.train['train'].get('budget_opt') or {}
    sparsity = run.train['network_g']['sparsity']
    assert budget.get('target', 1) > min(sparsity['levels']) / sparsity['m']
    assert min(run.budgets) > min(sparsity['levels']) / sparsity['m']


def test_noise_is_the_same_in_training_calibration_and_tests(run: Run) -> None:
    noises = [(block['sigma'], block['color']) for block in datasets_of(run) if block['type'] == 'GaussianNoiseDataset']
    assert noises in ([], [noises[0]] * len(datasets_of(run)) if noises else [])
    assert bool(noises) == (run.train['scale'] == 1)


def test_no_run_trains_on_what_it_is_tested_on(run: Run) -> None:
    trained = {
        run.train['datasets']['train']['dataroot_gt'],
        run.train['train']['calibration']['dataset']['dataroot_gt'],
    }
    assert trained.isdisjoint(block['dataroot_gt'] for block in run.sets.values())


@given(BLOCKS.filter(lambda value: isinstance(value, dict)), BLOCKS.filter(lambda value: isinstance(value, dict)))
def test_merging_changes_what_the_change_names_and_nothing_else(base: dict, change: dict) -> None:
    before = copy.deepcopy((base, change))
    result = merged(base, change)
    assert (base, change) == before
    assert result.keys() == base.keys() | change.keys()
    for key, value in result.items():
        if key not in change:
            assert value == base[key]
        elif isinstance(change[key], dict) and isinstance(base.get(key), dict):
            assert value == merged(base[key], change[key])
        else:
            assert value == change[key]


def test_a_block_of_another_type_takes_the_place_of_the_one_there() -> None:
    base = {'loss': {'type': 'BudgetLoss', 'target': 0.5}, 'net': {'type': 'EDSR', 'num_feat': 64}}
    change = {'loss': {'type': 'Other', 'weight': 6}, 'net': {'type': 'EDSR', 'num_block': 8}}
    assert merged(base, change) == {'loss': change['loss'], 'net': {'type': 'EDSR', 'num_feat': 64, 'num_block': 8}}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'bugets': [0.5]}, r"Unknown key 'bugets' in .*runs\.tiny\. Did you mean 'budgets'"),
        ({'changes': ['procesor']}, r"runs\.tiny\.changes is 'procesor'; Did you mean 'processor'"),
        ({'sets': ['Set6']}, r"runs\.tiny\.sets is 'Set6'; Did you mean 'Set5'"),
        ({'options': 'train_cp_srvg_x2.yml'}, r"No option file 'train_cp_srvg_x2\.yml'"),
    ],
)
def test_a_wrong_run_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = yaml.safe_load(FILE.read_text())
    content['runs'] = {'tiny': {**content['runs']['M6C40_x2'], **change}}
    (tmp_path / 'runs.yml').write_text(yaml.safe_dump(content))
    with pytest.raises(OptionError, match=message):
        read_run('tiny', tmp_path / 'runs.yml')


def test_the_command_names_its_runs_and_refuses_others() -> None:
    command = [sys.executable, '-m', 'cp_basicsr.tools.reproduce']
    listed = subprocess.run([*command, '--list'], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == run_names()
    refused = subprocess.run([*command, 'M6C40_x3'], capture_output=True, text=True)
    assert refused.returncode == 1 and "'M6C40_x3'; Did you mean 'M6C40_x" in refused.stderr
    assert 'Traceback' not in refused.stderr


def test_a_run_trains_tests_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = user_options(tmp_path, iters=2)
    val = {key: value for key, value in train['datasets']['val'].items() if key != 'name'}
    curve = Curve('made', 1, [2, 4])
    run = Run('tiny', train, {'made': {'name': 'made', **val}}, None, [0.6], ['random'], False, curve)
    out = tmp_path / 'out' / 'tiny'

    results = reproduce.reproduce(run, out)
    (table,) = json.loads(results.read_text())['tables']
    names = [row['name'] for row in table['rows']]
    assert names == ['dense', 'static 2:4', 'static 1:4', 'routed 0.6', 'random 0.6']
    assert yaml.safe_load((out / 'train.yml').read_text()) == train
    assert 'net_g_latest.pth' in (out / 'test_tiny.yml').read_text()
    (shown,) = json.loads((out / 'curve' / 'results.json').read_text())['tables']
    assert {row['file'] for row in shown['rows']} == {'tiny_after_2', 'tiny_after_4'}
    assert {row['kind'] for row in shown['rows']} == {'static'}

    written = (out / 'train.log').stat().st_mtime_ns, results.read_text()
    reproduce.reproduce(run, out)
    assert ((out / 'train.log').stat().st_mtime_ns, results.read_text()) == written


def test_the_short_form_is_the_same_run_with_little_training(run: Run) -> None:
    short = reproduce.shortened(run)
    assert short.train['network_g'] == run.train['network_g'] and short.train['datasets'] == run.train['datasets']
    plan = TrainingOptions.read(short.train['train']).plan
    assert [stage.name for stage in plan.stages] == [stage['name'] for stage in run.train['train']['stages']]
    assert short.train['train']['total_iter'] < run.train['train']['total_iter'] / 50
    assert short.name != run.name and short.images == 1 and short.train['name'] == short.name


def test_a_set_that_is_not_there_is_named_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, 'run_command', lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'dataset BSD100: dataroot_lq: folder datasets/B100/LRbicx2 does not exist'):
        reproduce.main(['M6C40_x2'])
