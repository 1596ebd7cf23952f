"""What the demo makes of its option file; the demo itself takes minutes and is run by .ci/run."""

from pathlib import Path

import pytest
import yaml

from cp_basicsr import demo
from cp_basicsr.option_files import option_file


@pytest.fixture
def options() -> dict:
    return yaml.safe_load(option_file(f'{demo.NAME}.yml').read_text())


def test_the_short_form_shortens_every_stage_and_still_adds_up(options: dict) -> None:
    full = [stage['iters'] for stage in options['train']['stages']]
    assert options['train']['total_iter'] == sum(full)
    demo._shorten(options)
    short = [stage['iters'] for stage in options['train']['stages']]
    assert all(0 < few <= many // 5 for few, many in zip(short, full, strict=True))
    assert options['train']['total_iter'] == sum(short)
    from cp_basicsr.models.training_options import TrainingOptions

    assert TrainingOptions.read(options['train']).plan.stages[-1].last == sum(short)


def test_all_its_data_are_below_its_folder(options: dict) -> None:
    blocks = [*options['datasets'].values(), options['train']['calibration']['dataset']]
    roots = [value for block in blocks for key, value in block.items() if key.startswith('dataroot_')]
    assert len(roots) >= len(blocks) and all(Path(root).is_relative_to(demo.DATA) for root in roots)
