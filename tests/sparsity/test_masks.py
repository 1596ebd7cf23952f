import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import mask_by_hand, ranks_by_hand

from cp_basicsr.sparsity import NMPattern, level_mask, weight_ranks

# Few different magnitudes, so that ties are common.
MAGNITUDES = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


@st.composite
def weights(draw):
    m = draw(st.integers(2, 32))
    width = draw(st.integers(1, 2 * m + 3))
    kernel = draw(st.lists(st.integers(1, 3), max_size=3))
    out_width = draw(st.integers(1, 3))
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        return m, torch.randn(out_width, width, *kernel, generator=generator)
    count = out_width * width * math.prod(kernel)
    values = draw(st.lists(MAGNITUDES, min_size=min(count, 64), max_size=min(count, 64)))
    repeated = torch.tensor(values).repeat(-(-count // len(values)))[:count]
    return m, repeated.view(out_width, width, *kernel)


@settings(max_examples=60, deadline=None)
@given(weights())
def test_ranks_equal_a_plain_sort_of_each_group(given_weights):
    m, weight = given_weights
    ranks = weight_ranks(weight, m)
    assert ranks.dtype == torch.uint8
    assert torch.equal(ranks, ranks_by_hand(weight, m))


@settings(max_examples=60, deadline=None)
@given(weights())
def test_ranks_of_a_group_are_a_permutation(given_weights):
    m, weight = given_weights
    ranks = weight_ranks(weight, m)
    for start in range(0, weight.shape[1], m):
        group = ranks[:, start : start + m].sort(dim=1).values
        numbers = torch.arange(group.shape[1]).view(1, -1, *[1] * (weight.dim() - 2))
        assert (group == numbers).all()


@settings(max_examples=60, deadline=None)
@given(weights(), st.data())
def test_masks_are_nested_and_keep_exactly_n_of_each_group(given_weights, data):
    m, weight = given_weights
    levels = sorted(data.draw(st.sets(st.integers(1, m - 1), min_size=1, max_size=4)) | {m})
    pattern, ranks = NMPattern(m, levels), weight_ranks(weight, m)
    masks = [level_mask(ranks, pattern, k) for k in range(len(levels))]
    for sparser, denser in zip(masks, masks[1:], strict=False):
        assert not (sparser & ~denser).any()
    for n, mask in zip(levels, masks, strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, mask_by_hand(weight, n, m))
        for start in range(0, weight.shape[1], m):
            group = mask[:, start : start + m]
            assert (group.sum(dim=1) == math.ceil(n * group.shape[1] / m)).all()
    assert masks[-1].all()


def test_equal_magnitudes_keep_the_first_channels():
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0, 3.0, 3.0]])
    assert weight_ranks(weight, 4).tolist() == [[0, 1, 2, 3, 0, 1]]
    # The remainder group of 2 keeps ceil(1 * 2 / 4) = 1.
    assert level_mask(weight_ranks(weight, 4), NMPattern(4, [1, 4]), 0).tolist() == [
        [True, False, False, False, True, False]
    ]


def test_ranks_hold_group_lengths_up_to_256_and_half_precision():
    weight = torch.arange(256.0).view(1, 256)
    assert weight_ranks(weight, 256)[0].tolist() == list(range(255, -1, -1))
    assert torch.equal(weight_ranks(weight.bfloat16(), 4)[0, :8].int(), torch.tensor([3, 2, 1, 0] * 2).int())
