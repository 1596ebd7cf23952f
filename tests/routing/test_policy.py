import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_basicsr.routing import BudgetError, fit_price, levels_at_price, levels_for_budget, spent_share
from cp_basicsr.routing.policy import check_budget

COSTS = torch.tensor([0.26, 0.51, 1.0], dtype=torch.float64)


def predictions(count, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(count, 3, generator=generator, dtype=torch.float64)).log_softmax(dim=1)


def test_a_price_by_hand():
    log_probs = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
    assert levels_at_price(log_probs, COSTS, 0.0).tolist() == [1, 0, 2], 'price 0 is plain argmax'
    # First tile: log 0.5 - 0.51 p against log 0.2 - 0.26 p: the sparser level from p = log(2.5) / 0.25 = 3.665.
    # Third tile: log 8 against 0.74 p, from p = 2.810.
    assert levels_at_price(log_probs, COSTS, 2.80).tolist() == [1, 0, 2]
    assert levels_at_price(log_probs, COSTS, 2.82).tolist() == [1, 0, 0]
    assert levels_at_price(log_probs, COSTS, 3.66).tolist() == [1, 0, 0]
    assert levels_at_price(log_probs, COSTS, 3.67).tolist() == [0, 0, 0]
    assert levels_at_price(log_probs, COSTS, -1e6).tolist() == [2, 2, 2]
    equal = torch.zeros(2, 3)
    assert levels_at_price(equal, COSTS, 0.0).tolist() == [0, 0], 'equal scores go to the sparser level'


def test_the_share_is_a_mean_weighted_by_area():
    levels = torch.tensor([0, 2, 1])
    assert spent_share(levels, COSTS) == pytest.approx((0.26 + 1 + 0.51) / 3)
    areas = torch.tensor([4.0, 1.0, 5.0])
    assert spent_share(levels, COSTS, areas) == pytest.approx((4 * 0.26 + 1 + 5 * 0.51) / 10)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.lists(st.floats(-50, 50), min_size=2, max_size=8))
def test_a_higher_price_never_spends_more(count, seed, prices):
    log_probs = predictions(count, seed)
    spent = [levels_at_price(log_probs, COSTS, price) for price in sorted(prices)]
    for dearer, cheaper in zip(spent, spent[1:], strict=False):
        assert (cheaper <= dearer).all()


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 80), kinds=st.integers(1, 80), seed=st.integers(0, 10**6), budget=st.floats(0.26, 1.0),
    cut=st.booleans(),
)  # fmt: skip
def test_a_budget_is_met_to_within_one_tile(count, kinds, seed, budget, cut):
    """Also where few or no predictions differ (a flat sky)."""
    log_probs = predictions(min(kinds, count), seed).repeat(-(-count // min(kinds, count)), 1)[:count]
    generator = torch.Generator().manual_seed(seed)
    areas = torch.randint(1, 257, (count,), generator=generator).double() if cut else torch.full((count,), 256.0)
    levels = levels_for_budget(log_probs, COSTS, budget, areas)
    one_tile = float(areas.max() / areas.sum()) * float(COSTS[-1] - COSTS[0])
    assert abs(spent_share(levels, COSTS, areas) - budget) <= one_tile + 1e-9


def test_equal_tiles_are_given_the_denser_level_in_raster_order():
    levels = levels_for_budget(torch.zeros(10, 3), COSTS, 0.6)
    assert levels.tolist() == sorted(levels.tolist(), reverse=True)
    assert spent_share(levels, COSTS) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(('budget', 'level'), [(0.26, 0), (0.1, 0), (1.0, 2), (1.5, 2)])
def test_at_and_beyond_the_ends_every_tile_takes_the_end(budget, level):
    assert (levels_for_budget(predictions(50), COSTS, budget) == level).all()


def test_a_whole_image_takes_the_level_nearest_to_the_budget():
    log_probs = torch.tensor([[0.1, 0.8, 0.1]]).log()
    assert [int(levels_for_budget(log_probs, COSTS, budget)) for budget in (0.27, 0.5, 0.55, 0.95)] == [0, 1, 1, 2]


def test_harder_tiles_get_denser_levels():
    easy, hard = torch.tensor([0.8, 0.15, 0.05]).log(), torch.tensor([0.05, 0.15, 0.8]).log()
    levels = levels_for_budget(torch.stack([easy, hard] * 8), COSTS, 0.6)
    assert levels[1::2].double().mean() > levels[::2].double().mean()


@pytest.mark.parametrize('budget', [0.27, 0.3, 0.5, 0.9, 0.99])
def test_just_above_the_price_the_budget_is_kept_and_just_below_it_is_not(budget):
    log_probs = predictions(500)
    price = fit_price(log_probs, COSTS, budget)
    assert spent_share(levels_at_price(log_probs, COSTS, price + 1e-9), COSTS) <= budget
    assert spent_share(levels_at_price(log_probs, COSTS, price - 1e-9), COSTS) > budget


def by_bisection(log_probs, costs, budget, areas):
    """Levels at the price where the share crosses the budget, found by trying: just above and just below it."""
    low, high = -1e6, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        spent = spent_share(levels_at_price(log_probs, costs, middle), costs, areas)
        low, high = (low, middle) if spent <= budget else (middle, high)
    return levels_at_price(log_probs, costs, high), levels_at_price(log_probs, costs, low)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60), levels=st.integers(2, 7), seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0),
    spread=st.sampled_from([1e-3, 1.0, 30.0]), cut=st.booleans(),
)  # fmt: skip
def test_a_budget_is_met_by_the_levels_on_either_side_of_the_price(count, levels, seed, share, spread, cut):
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(levels, generator=generator, dtype=torch.float64).add(0.05).cumsum(0)
    costs, areas = costs / costs[-1], torch.randint(1, 257, (count,), generator=generator).double() if cut else None
    log_probs = (spread * torch.randn(count, levels, generator=generator, dtype=torch.float64)).log_softmax(dim=1)
    budget = float(costs[0] + share * (costs[-1] - costs[0]))
    chosen = levels_for_budget(log_probs, costs, budget, areas)
    cheap, dear = by_bisection(log_probs, costs, budget, areas)
    if spent_share(dear, costs, areas) <= budget + 1e-9:
        assert torch.equal(chosen, dear)
    else:
        assert ((cheap <= chosen) & (chosen <= dear)).all()
        assert ((chosen != cheap) & (chosen != dear)).sum() <= 1


def test_a_tile_without_a_prediction_takes_the_sparsest_level():
    log_probs = predictions(20)
    log_probs[3] = torch.nan
    for budget in (0.26, 0.5, 0.9, 1.0):
        levels = levels_for_budget(log_probs, COSTS, budget)
        assert levels[3] == 0
    assert (levels[torch.arange(20) != 3] == 2).all()


@pytest.mark.parametrize('budget', [0.25, 1.03])
def test_a_budget_outside_what_the_levels_allow_is_refused_with_the_range(budget):
    with pytest.raises(BudgetError, match=rf'val\.budget is {budget}, outside .* 0\.280 .* 1\.020 '):
        check_budget(budget, COSTS, 0.02)
    with pytest.raises(BudgetError, match=r'^train\.budget_opt\.target is'):
        check_budget(budget, COSTS, 0.02, 'train.budget_opt.target')


@pytest.mark.parametrize('budget', [0.28, 0.5, 1.0, 1.02])
def test_a_budget_within_what_the_levels_allow_passes(budget):
    check_budget(budget, COSTS, 0.02)


def test_where_cut_tiles_cost_more_than_the_dense_network_they_are_the_remedy():
    with pytest.raises(BudgetError, match=r'2\.000 \(every tile dense\).*cut larger tiles with less overlap'):
        check_budget(0.3, 2 * COSTS, 0.0)
    with pytest.raises(BudgetError, match=r'add sparser levels'):
        check_budget(0.2, COSTS, 0.0)
