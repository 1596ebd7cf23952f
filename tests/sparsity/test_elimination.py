"""Which weights remain, against trying every removal or every mask with numpy's least squares."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from cp_basicsr.sparsity import elimination
from cp_basicsr.sparsity.elimination import eliminate

pytestmark = pytest.mark.usefixtures('one_thread')


def correlated(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``[samples, K]``, of which some are nearly sums of others, and wanted outputs ``[samples, rows]``."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((60, columns)) @ (np.eye(columns) + 0.7 * random.standard_normal((columns,) * 2))
    return inputs, inputs @ random.standard_normal((columns, rows)) + 0.1 * random.standard_normal((60, rows))


def error(inputs: np.ndarray, wanted: np.ndarray, columns: list[int]) -> float:
    """Sum of squares that the best values of these columns leave."""
    values = np.linalg.lstsq(inputs[:, columns], wanted, rcond=None)[0]
    return float(np.square(inputs[:, columns] @ values - wanted).sum())


def remaining(
    inputs: np.ndarray, wanted: np.ndarray, kept: torch.Tensor, groups: list[int], quota: list[int]
) -> torch.Tensor:
    gram, cross = (torch.from_numpy(matrix / len(inputs)) for matrix in (inputs.T @ inputs, wanted.T @ inputs))
    return eliminate(gram, cross, kept, torch.tensor(groups), torch.tensor(quota))


@pytest.mark.parametrize('seed', range(4))
def test_each_removal_is_the_one_that_costs_least(seed: int) -> None:
    groups, quota = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3], [2, 1, 1, 1]  # the last stays, as a bias does
    inputs, wanted = correlated(seed, 5, len(groups))
    kept = remaining(inputs, wanted, torch.ones(5, len(groups), dtype=torch.bool), groups, quota)
    for row in range(5):
        columns = list(range(len(groups)))
        while len(columns) > sum(quota):
            members = [groups[column] for column in columns]
            free = [column for column in columns if members.count(groups[column]) > quota[groups[column]]]
            columns = min(
                ([other for other in columns if other != column] for column in free),
                key=lambda left: error(inputs, wanted[:, row], left),
            )
        assert kept[row].nonzero()[:, 0].tolist() == columns


def test_it_is_nearer_to_the_best_of_all_masks_than_the_largest_weights() -> None:
    groups, quota = [0, 0, 0, 0, 1, 1, 1, 1], [2, 2]
    pairs = [list(pair) for pair in combinations(range(4), 2)]
    masks = [first + [4 + column for column in second] for first, second in product(pairs, pairs)]
    excess = {'greedy': 0.0, 'magnitude': 0.0}
    for seed in range(20):
        inputs, wanted = correlated(seed, 1, 8)
        best = min(error(inputs, wanted[:, 0], mask) for mask in masks)
        greedy = remaining(inputs, wanted, torch.ones(1, 8, dtype=torch.bool), groups, quota)[0].nonzero()[:, 0]
        dense = np.linalg.lstsq(inputs, wanted[:, 0], rcond=None)[0]
        size = np.abs(dense) * np.sqrt(np.square(inputs).mean(axis=0))
        magnitude = [4 * group + column for group in (0, 1) for column in size[4 * group :][:4].argsort()[2:]]
        for name, mask in {'greedy': greedy.tolist(), 'magnitude': magnitude}.items():
            excess[name] += np.log(error(inputs, wanted[:, 0], mask) / best)
    assert 0 <= excess['greedy'] < 0.6 * excess['magnitude']


def test_what_is_gone_stays_gone_whatever_is_worked_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [column // 4 for column in range(16)]
    inputs, wanted = correlated(0, 7, 16)
    half = remaining(inputs, wanted, torch.ones(7, 16, dtype=torch.bool), groups, [2] * 4)
    quarter = remaining(inputs, wanted, half, groups, [1] * 4)
    assert (half.view(7, 4, 4).sum(dim=2) == 2).all()
    assert (quarter.view(7, 4, 4).sum(dim=2) == 1).all()
    assert not (quarter & ~half).any()
    monkeypatch.setattr(elimination, 'TOGETHER', 1)  # one row after the other
    assert torch.equal(half, remaining(inputs, wanted, torch.ones(7, 16, dtype=torch.bool), groups, [2] * 4))


def test_weights_that_do_nothing_go_first() -> None:
    inputs, wanted = correlated(0, 3, 8)
    inputs[:, [1, 6]] = 0
    wanted[:] = inputs @ np.ones((8, 3))
    ridge = torch.full((8,), 1e-3, dtype=torch.float64).diag()
    gram, cross = (torch.from_numpy(matrix / 60) for matrix in (inputs.T @ inputs, wanted.T @ inputs))
    kept = torch.ones(3, 8, dtype=torch.bool)
    kept = eliminate(gram + ridge, cross, kept, torch.tensor([0] * 4 + [1] * 4), torch.tensor([3, 3]))
    assert not kept[:, [1, 6]].any()
