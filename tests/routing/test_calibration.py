import pytest
import torch

from cp_basicsr.routing import Calibration, levels_at_price, spent_share

COSTS = torch.tensor([0.26, 0.51, 1.0], dtype=torch.float64)


def predictions(count, seed, kind):
    """Predictions of one distribution: undecided, decided, or mostly easy."""
    generator = torch.Generator().manual_seed(seed)
    spread, shift = {'undecided': (0.3, 0.0), 'decided': (8.0, 0.0), 'mostly easy': (2.0, -3.0)}[kind]
    logits = spread * torch.randn(count, 3, generator=generator)
    return (logits + shift * torch.arange(3)).log_softmax(dim=1)


@pytest.mark.parametrize('kind', ['undecided', 'decided', 'mostly easy'])
@pytest.mark.parametrize('costs', [COSTS, torch.tensor([0.4, 0.9, 1.0], dtype=torch.float64)], ids=str)
def test_fresh_predictions_of_the_same_distribution_meet_every_budget_within_3_percent(kind, costs):
    calibration = Calibration()
    calibration.fit('tile', predictions(4000, 0, kind), costs)
    fresh = predictions(4000, 1, kind)
    for budget in torch.linspace(float(costs[0]), 1, 23).tolist():
        levels = levels_at_price(fresh, costs, calibration.price('tile', budget, costs))
        assert spent_share(levels, costs) == pytest.approx(budget, abs=0.03)


def test_the_curve_falls_and_holds_for_costs_of_another_shape():
    calibration = Calibration()
    calibration.fit('tile', predictions(4000, 0, 'undecided'), COSTS)
    assert (calibration.tile_prices.diff() <= 0).all()
    # Border effects shift costs by a little; the curve is over the span between them.
    shifted = COSTS.clone()
    shifted[:2] += 0.02
    fresh = predictions(4000, 1, 'undecided')
    for budget in (0.35, 0.5, 0.75):
        levels = levels_at_price(fresh, shifted, calibration.price('tile', budget, shifted))
        assert spent_share(levels, shifted) == pytest.approx(budget, abs=0.03)


def test_the_two_scopes_are_fitted_apart_and_kept_in_the_state_dict():
    calibration = Calibration()
    assert not calibration.is_fitted('tile') and not calibration.is_fitted('image')
    calibration.fit('tile', predictions(100, 0, 'undecided'), COSTS)
    assert calibration.is_fitted('tile') and not calibration.is_fitted('image')
    again = Calibration()
    again.load_state_dict(calibration.state_dict(), strict=True)
    assert again.is_fitted('tile') and not again.is_fitted('image')
    assert again.price('tile', 0.6, COSTS) == calibration.price('tile', 0.6, COSTS)


def test_other_precisions_of_the_network_do_not_round_the_prices():
    calibration = Calibration()
    calibration.fit('tile', predictions(100, 0, 'undecided'), COSTS)
    price = calibration.price('tile', 0.6, COSTS)
    assert calibration.half().price('tile', 0.6, COSTS) == price
    assert calibration.tile_prices.dtype == torch.float64


def test_equal_predictions_give_a_finite_curve():
    calibration = Calibration()
    calibration.fit('image', torch.zeros(10, 3), COSTS)
    assert calibration.is_fitted('image')
