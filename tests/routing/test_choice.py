import pytest
import yaml

from cp_basicsr.options import OptionError
from cp_basicsr.routing.choice import RoutingChoice


@pytest.mark.parametrize(
    ('val', 'choice'),
    [
        ('{}', RoutingChoice()),
        ('{budget: 0.5}', RoutingChoice(budget=0.5)),
        ('{budget: 1, tile: {size: 24}}', RoutingChoice(budget=1.0, tile=24)),
        ('{level: 0, tile: ~}', RoutingChoice(level=0, tile=None)),
        ('{level: -1, metrics: {psnr: {}}}', RoutingChoice(level=-1)),
        ('{policy: argmax, tile: {}}', RoutingChoice()),
        ('{budget: 0.5, budget_tolerance: ~}', RoutingChoice(budget=0.5, tolerance=None)),
        ('{budget: ~, level: ~, policy: ~, precision: ~}', RoutingChoice()),
        ('{tile: {size: 64, overlap: 8}}', RoutingChoice(tile=64, overlap=8)),
        ('{tile: {overlap: 0}}', RoutingChoice(overlap=0)),
        ('{tile: {overlap: ~}, precision: bf16}', RoutingChoice(precision='bf16')),
    ],
)
def test_the_val_block_of_an_option_file(val, choice):
    assert RoutingChoice.from_val_options(yaml.safe_load(val)) == choice


@pytest.mark.parametrize(
    ('val', 'told'),
    [
        ('{budget: 0.5, level: 0}', 'val holds budget and level; they exclude each other'),
        ('{budget: 0.5, policy: argmax}', 'budget and policy'),
        ('{policy: argmin}', r"val\.policy is 'argmin'.*'argmax'"),
        ('{budget: half}', r"val\.budget is 'half'; allowed: a number"),
        ('{budget: yes}', r'val\.budget is True'),
        ('{budget: -0.1}', r'val\.budget is -0\.1'),
        ('{budget: .nan}', r'val\.budget is nan'),
        ('{budget: 50}', r'val\.budget is 50; allowed: a number from 0 to 2'),
        ('{level: densest}', r"val\.level is 'densest'; allowed: the index"),
        ('{level: 1.0}', r'val\.level is 1\.0'),
        ('{level: no}', r'val\.level is False'),
        ('{tile: 16}', r'val\.tile is 16; write a block of keys: overlap, size'),
        ('{tile: {sise: 16}}', r"Unknown key 'sise' in val\.tile\. Did you mean 'size'\?"),
        ('{tile: {size: 0}}', r'val\.tile\.size is 0; allowed: a positive number'),
        ('{tile: {size: 16.5}}', r'val\.tile\.size is 16\.5'),
        ('{tile: {size: yes}}', r'val\.tile\.size is True'),
        ('{tile: {size: 64, overlap: -1}}', r'val\.tile\.overlap is -1; allowed: lq pixels .* from 0 up'),
        ('{tile: {overlap: no}}', r'val\.tile\.overlap is False'),
        ('{tile: {overlaps: 8}}', r"Unknown key 'overlaps' in val\.tile\. Did you mean 'overlap'\?"),
        ('{precision: half}', r"val\.precision is 'half'; allowed: 'fp32', 'bf16', 'fp16'"),
        ('{precision: 16}', r'val\.precision is 16'),
        ('{budget_tolerance: 3}', r'val\.budget_tolerance is 3'),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(val, told):
    with pytest.raises(OptionError, match=told):
        RoutingChoice.from_val_options(yaml.safe_load(val))
