import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_basicsr.routing import at_price, patch_psnr, price_cost, price_psnr, soft_oracle, tile_mse, tile_worth

COSTS = torch.tensor([0.25, 0.5, 1.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(0, 10**6))
def test_error_of_each_tile_also_of_those_the_border_cuts(height, width, tile, seed):
    generator = torch.Generator().manual_seed(seed)
    output, gt = (torch.rand(2, 3, height, width, generator=generator) for _ in range(2))
    mses = tile_mse(output, gt, tile)
    assert mses.shape == (2, math.ceil(height / tile), math.ceil(width / tile))
    for b in range(2):
        for row in range(mses.shape[1]):
            for column in range(mses.shape[2]):
                rows, columns = (slice(i * tile, (i + 1) * tile) for i in (row, column))
                mse = (output[b, :, rows, columns] - gt[b, :, rows, columns]).square().mean()
                assert mses[b, row, column].item() == pytest.approx(mse.item(), rel=1e-4)


def test_what_a_level_is_worth_to_its_patch_by_literal_numbers():
    """Two tiles, two levels: the first tile at the sparse level leaves the patch a mean error of (0.04 + 0.001) / 2."""
    mse = torch.tensor([[[[0.04, 0.003]], [[0.01, 0.001]]]])
    dense = (0.01 + 0.001) / 2
    expected = [[(0.04 + 0.001) / 2, (0.01 + 0.003) / 2], [dense, dense]]
    for level in range(2):
        for tile in range(2):
            worth = -10 * 2 * math.log10(expected[level][tile])
            assert patch_psnr(mse)[0, level, 0, tile].item() == pytest.approx(worth, rel=1e-6)


def test_a_single_tile_is_worth_its_psnr_and_at_most_60_db():
    mse = torch.tensor([0.01, 1e-4, 0.0]).view(1, 3, 1, 1)
    assert patch_psnr(mse).flatten().tolist() == pytest.approx([20.0, 40.0, 60.0], rel=1e-5)


def test_the_same_gain_in_error_is_worth_the_same_on_a_smooth_and_a_textured_tile():
    gain = patch_psnr(torch.tensor([[[[0.0101, 0.0002]], [[0.01, 0.0001]]]])).diff(dim=1)[0, 0, 0]
    assert gain[0].item() == pytest.approx(gain[1].item(), rel=1e-3)


def test_what_a_level_is_worth_to_a_picture_by_literal_numbers():
    """The patch's dense error is 0.002, that of the set 0.008: their geometric mean is 0.004."""
    mse = torch.tensor([[[[0.005, 0.004]], [[0.003, 0.001]]]], dtype=torch.float64)
    worth = tile_worth(mse, 0.008)
    decibel = 10 / math.log(10)
    assert worth.flatten().tolist() == pytest.approx([-decibel * 0.5, -decibel * 0.75, 0, 0])
    assert torch.isfinite(tile_worth(torch.zeros(1, 2, 1, 1), 0.0)).all()


def test_a_price_by_hand_and_the_price_of_a_budget():
    log_probs = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
    for row, before in zip(
        at_price(log_probs, COSTS.double(), 2.0).exp(), [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], strict=True
    ):
        weights = [p * math.exp(-2 * c) for p, c in zip(before, COSTS.tolist(), strict=True)]
        assert row.tolist() == pytest.approx([weight / sum(weights) for weight in weights])
    for budget in (0.3, 0.5, 0.9):
        price = price_cost(log_probs, COSTS.double(), budget)
        assert (at_price(log_probs, COSTS.double(), price).exp() @ COSTS.double()).mean().item() == pytest.approx(
            budget, abs=1e-4
        )


def test_log_probabilities_of_extreme_tiles_do_not_underflow():
    psnr = torch.tensor([[0.0, 1e4, 2e4]])
    assert torch.isfinite(soft_oracle(psnr, COSTS, eta=1.0, tau=0.1)).all()


def test_the_soft_oracle_by_hand():
    psnr = torch.tensor([[30.0, 31.0, 31.5], [30.0, 30.0, 30.0]])
    soft = soft_oracle(psnr, COSTS, eta=0.2, tau=0.1).exp()
    for row, values in enumerate(psnr.tolist()):
        weights = [
            math.exp((0.2 * value - cost) / 0.1 - 60) for value, cost in zip(values, COSTS.tolist(), strict=True)
        ]
        assert soft[row].tolist() == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-4)
    assert soft[1].argmax() == 0, 'where nothing is gained, the sparsest level'


@pytest.mark.parametrize('budget', [0.35, 0.5, 0.75, 0.9])
@pytest.mark.parametrize('tau', [0.02, 0.1])
def test_the_price_of_a_decibel_meets_the_budget(budget, tau):
    generator = torch.Generator().manual_seed(0)
    gains = torch.rand(500, 2, generator=generator) * torch.rand(500, 1, generator=generator)
    psnr = 30 + torch.cat([torch.zeros(500, 1), gains.cumsum(dim=1)], dim=1)
    eta = price_psnr(psnr, COSTS, budget, tau)
    assert (soft_oracle(psnr, COSTS, eta, tau).exp() @ COSTS).mean().item() == pytest.approx(budget, abs=2e-3)


def test_where_no_price_meets_the_budget_the_nearest_is_taken():
    psnr = 30 + torch.tensor([[0.0, 0.5, 1.0]] * 4)
    assert price_psnr(psnr, COSTS, 2.0, 0.1) == pytest.approx(1e3, rel=1e-3)
    assert price_psnr(psnr, COSTS, 0.0, 0.1) == pytest.approx(1e-3, rel=1e-3)
