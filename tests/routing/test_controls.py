"""Routing by edges, at random and by the true errors, against values worked out by hand and against every other map."""

import itertools

import pytest
import torch
from torch import Tensor

from cp_basicsr.routing.controls import edge_scores, levels_by_score, oracle_levels
from cp_basicsr.routing.policy import spent_share

COSTS = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)


def equal(count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


def shares(levels: list[int]) -> Tensor:
    return torch.tensor(levels).bincount(minlength=3) / len(levels)


def test_edge_scores_of_a_ramp_a_step_and_a_dot() -> None:
    """A ramp has none inside; a step has its height on both sides; a dot has 4 in it and 1 beside it, 4 times."""
    image = torch.zeros(1, 1, 4, 12)
    image[..., 0:4] = torch.arange(4) / 10
    image[..., 4:8] = 0.3
    image[..., 6:8] = 0.8
    image[..., 8:12] = 0.8
    image[0, 0, 1, 10] = 1.8
    # the ramp's first column repeats itself (0.1 above it), its last meets 0.3 of the next tile (0.1 below it);
    # the step of 0.5 lies inside the second tile; the dot inside the third
    expected = [(0.1 + 0.1) * 4 / 16, 2 * 4 * 0.5 / 16, 8.0 / 16]
    assert edge_scores(image, 4)[0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert float(edge_scores(image, None)) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_edge_scores_average_channels_and_frames_and_cut_tiles() -> None:
    image = torch.rand(2, 3, 10, 7, generator=torch.Generator().manual_seed(0))
    scores = edge_scores(image, 8)
    assert scores.shape == (2, 2, 1)
    gray = image.mean(dim=1)
    padded = torch.nn.functional.pad(gray[:, None], (1, 1, 1, 1), mode='replicate')[:, 0]
    centre = padded[:, 1:-1, 1:-1]
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    expected = (around - 4 * centre).abs()
    assert torch.allclose(scores[:, 0, 0], expected[:, :8].mean(dim=(1, 2)))
    assert torch.allclose(scores[:, 1, 0], expected[:, 8:].mean(dim=(1, 2)))
    video = image[None].expand(2, -1, -1, -1, -1)
    assert torch.allclose(edge_scores(video, None).flatten(), edge_scores(image.mean(0, keepdim=True), None).flatten())


def test_harder_tiles_get_denser_levels_and_as_many_of_each() -> None:
    scores = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7, 0.2])
    levels = levels_by_score(scores, shares([0, 0, 0, 1, 1, 2]), COSTS, equal(6), budget=(3 * 0.25 + 2 * 0.5 + 1) / 6)
    assert levels.tolist() == [0, 2, 0, 1, 1, 0]


def test_what_a_classifier_costs_lifts_the_hardest_tiles_below_the_densest() -> None:
    scores = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7, 0.2])
    spent = (3 * 0.25 + 2 * 0.5 + 1) / 6
    one_tile_more = levels_by_score(scores, shares([0, 0, 0, 1, 1, 2]), COSTS, equal(6), spent + 0.5 / 6 + 1e-9)
    assert one_tile_more.tolist() == [0, 2, 0, 1, 2, 0]
    not_quite = levels_by_score(scores, shares([0, 0, 0, 1, 1, 2]), COSTS, equal(6), spent + 0.49 / 6)
    assert not_quite.tolist() == [0, 2, 0, 1, 1, 0]


def test_equal_scores_are_told_apart_by_their_place() -> None:
    levels = levels_by_score(torch.zeros(4), shares([0, 0, 2, 2]), COSTS, equal(4), budget=0.625)
    assert levels.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize('seed', range(20))
def test_scores_never_spend_more_than_the_route_they_match_and_hardly_less(seed: int) -> None:
    """Tiles of unequal weight, as at the border of an image."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(60, generator=generator, dtype=torch.float64)
    weights /= weights.sum()
    route = torch.randint(3, (60,), generator=generator)
    spent = spent_share(route, COSTS, weights)
    by_level = route.bincount(weights, minlength=3)
    levels = levels_by_score(torch.rand(60, generator=generator), by_level, COSTS, weights, spent)
    assert spent - 0.75 * float(weights.max()) <= spent_share(levels, COSTS, weights) <= spent + 1e-9


def test_the_oracle_beats_every_other_map_of_its_cost() -> None:
    """All 3^6 maps are tried: none that costs at most as much has a smaller error, where errors add up by tile."""
    generator = torch.Generator().manual_seed(3)
    errors = torch.rand(6, 3, generator=generator, dtype=torch.float64).sort(dim=1, descending=True).values
    weights = torch.tensor([2.0, 1, 1, 2, 1, 1], dtype=torch.float64) / 8

    def error_of(levels: Tensor) -> float:
        return float((errors[torch.arange(6), levels] * weights).sum())

    maps = [torch.tensor(levels) for levels in itertools.product(range(3), repeat=6)]
    for budget in (0.3, 0.4, 0.5, 0.6, 0.75, 0.9):
        oracle = oracle_levels(errors, COSTS, weights, budget)
        spent = spent_share(oracle, COSTS, weights)
        assert spent <= budget + 0.75 * float(weights.max())
        # A Lagrangian solution is the best of its own cost, but for the one tile that fills the budget up.
        best = min(error_of(levels) for levels in maps if spent_share(levels, COSTS, weights) <= spent + 1e-9)
        slack = float(((errors[:, 0] - errors[:, 2]) * weights).max())
        assert error_of(oracle) <= best + slack
        for seed in range(5):
            scores = torch.rand(6, generator=generator)
            random = levels_by_score(scores, oracle.bincount(weights, minlength=3), COSTS, weights, spent)
            assert error_of(oracle) <= error_of(random) + 1e-12, seed


def test_the_oracle_by_hand() -> None:
    """Of two tiles only one gains by the densest level; the budget buys one."""
    errors = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.19, 0.18]])
    assert oracle_levels(errors, COSTS, equal(2), 0.625).tolist() == [2, 0]


def test_the_oracle_does_not_pay_for_what_makes_things_worse() -> None:
    errors = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]])
    assert oracle_levels(errors, COSTS, equal(2), 1.0).tolist() == [0, 1]
