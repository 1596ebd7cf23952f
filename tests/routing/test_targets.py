import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_basicsr.routing import price_psnr, soft_oracle, tile_psnr

COSTS = torch.tensor([0.25, 0.5, 1.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(0, 10**6))
def test_psnr_of_each_tile_also_of_those_the_border_cuts(height, width, tile, seed):
    generator = torch.Generator().manual_seed(seed)
    output, gt = (torch.rand(2, 3, height, width, generator=generator) for _ in range(2))
    psnr = tile_psnr(output, gt, tile)
    assert psnr.shape == (2, math.ceil(height / tile), math.ceil(width / tile))
    for b in range(2):
        for row in range(psnr.shape[1]):
            for column in range(psnr.shape[2]):
                rows, columns = (slice(i * tile, (i + 1) * tile) for i in (row, column))
                mse = (output[b, :, rows, columns] - gt[b, :, rows, columns]).square().mean()
                assert psnr[b, row, column].item() == pytest.approx(-10 * math.log10(mse), abs=1e-3)


def test_psnr_of_literal_errors_and_of_none():
    gt = torch.zeros(1, 1, 2, 5)
    output = gt.clone()
    output[..., :2] = 0.1
    output[..., 4:] = 0.01
    assert tile_psnr(output, gt, 2)[0, 0].tolist() == pytest.approx([20.0, 60.0, 40.0], abs=1e-3)


def test_the_soft_oracle_by_hand():
    psnr = torch.tensor([[30.0, 31.0, 31.5], [30.0, 30.0, 30.0]])
    soft = soft_oracle(psnr, COSTS, eta=0.2, tau=0.1)
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
    assert (soft_oracle(psnr, COSTS, eta, tau) @ COSTS).mean().item() == pytest.approx(budget, abs=2e-3)


def test_where_no_price_meets_the_budget_the_nearest_is_taken():
    psnr = 30 + torch.tensor([[0.0, 0.5, 1.0]] * 4)
    assert price_psnr(psnr, COSTS, 2.0, 0.1) == pytest.approx(1e3, rel=1e-3)
    assert price_psnr(psnr, COSTS, 0.0, 0.1) == pytest.approx(1e-3, rel=1e-3)
