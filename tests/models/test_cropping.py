"""A stage that takes a part of each training patch."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training import build, resume, train, training_options

from cp_basicsr.models.cropping import random_part
from cp_basicsr.options import OptionError

pytestmark = pytest.mark.usefixtures('one_thread')


@settings(max_examples=50, deadline=None)
@given(
    scale=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9), frames=st.integers(0, 2), data=st.data()
)
def test_both_images_are_cut_at_the_same_place(scale: int, height: int, width: int, frames: int, data: Any) -> None:
    side = data.draw(st.integers(1, min(height, width)))
    shape = (2, *([frames] if frames else []), 1, height, width)
    lq = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    gt = lq.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    small, large = random_part(lq, gt, side * scale, random.Random(data.draw(st.integers(0, 99))))
    assert small.shape == (*shape[:-2], side, side)
    assert torch.equal(large, small.repeat_interleave(scale, -1).repeat_interleave(scale, -2))
    first = small[..., :1, :1]
    assert torch.equal(small - first, (lq - lq[..., :1, :1])[..., :side, :side])


def test_every_place_is_taken() -> None:
    lq = torch.arange(6.0).view(1, 1, 2, 3)
    places = {float(random_part(lq, lq, 1, random.Random(seed))[0]) for seed in range(100)}
    assert places == set(range(6))


def test_patches_that_are_too_small() -> None:
    lq = torch.zeros(1, 1, 4, 6)
    with pytest.raises(OptionError, match=r'gt_size 5 of a stage in train\.stages is more than .* 6 x 4 pixels'):
        random_part(lq, lq, 5, random.Random(0))


def options_with(folder: Path, *sizes: int | None) -> dict[str, Any]:
    options = training_options(folder)
    for stage, size in zip(options['train']['stages'], sizes, strict=True):
        stage['gt_size'] = size
    return options


def test_each_stage_takes_its_own_part_and_a_resumed_run_the_same(tmp_path: Path) -> None:
    options = options_with(tmp_path, 16, None, 24)
    seen: dict[int, Tensor] = {}

    def watched(model: Any, first: int, last: int) -> Any:
        for iteration in range(first, last + 1):
            train(model, iteration, iteration)
            seen[iteration] = model.lq
        return model

    model = watched(build(options), 1, 3)
    model.save(0, 3)
    watched(model, 4, 6)
    assert [tuple(seen[iteration].shape[-2:]) for iteration in range(1, 7)] == [(8, 8)] * 2 + [(16, 16)] * 2 + [
        (12, 12)
    ] * 2
    assert model.gt.shape[-2:] == (24, 24)
    before = {iteration: seen.pop(iteration) for iteration in (5, 6)}
    train(resumed := resume(options, 3), 4, 4)
    watched(resumed, 5, 6)
    assert all(torch.equal(before[iteration], seen[iteration]) for iteration in (5, 6))


@pytest.mark.parametrize(
    ('size', 'message'),
    [
        (
            15,
            r'train\.stages\[0\]\.gt_size is 15; allowed: a multiple of scale 2, at most datasets\.train\.gt_size, 32',
        ),
        (
            34,
            r'train\.stages\[0\]\.gt_size is 34; allowed: a multiple of scale 2, at most datasets\.train\.gt_size, 32',
        ),
        (0, r'train\.stages\[0\]\.gt_size is 0; allowed: a positive integer'),
        ('16', r"train\.stages\[0\]\.gt_size is '16'; allowed: a positive integer"),
    ],
)
def test_a_part_that_cannot_be_cut(size: Any, message: str, tmp_path: Path) -> None:
    options = options_with(tmp_path, size, None, None)
    options['datasets']['train'] = {'gt_size': 32}
    with pytest.raises(OptionError, match=message):
        build(options)
