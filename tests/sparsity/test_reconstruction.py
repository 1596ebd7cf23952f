"""Least-squares start of the sparse levels, against numpy's lstsq and what it is for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cp_basicsr.sparsity import (
    NMPattern,
    UniformRoute,
    convert,
    moments,
    prunable_layers,
    reconstruct_levels,
    reconstruction,
    routed,
    starts_dense,
)

pytestmark = pytest.mark.usefixtures('one_thread')


class Small(nn.Module):
    """Two convolutions, the second with a stride and no bias, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 3, stride=2, padding=1, bias=False)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def supernet(net: nn.Module, levels: list[int] | None = None, weights: str = 'per_level') -> nn.Module:
    convert(net, NMPattern(4, levels or [1, 2, 4]), weights=weights)
    return net.eval()


def batches(count: int = 3, channels: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, channels, 12, 10 + 2 * index, generator=generator) for index in range(count)]


def at_level(net: nn.Module, x: Tensor, level: int) -> Tensor:
    with torch.no_grad(), routed(UniformRoute(level)):
        return net(x)


def test_the_first_layer_is_numpy_s_least_squares_of_the_kept_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, 'RIDGE', 1e-9)
    torch.manual_seed(0)
    net, inputs = supernet(Small()), batches()
    fitted = reconstruct_levels(net, inputs)
    assert fitted == ['first', 'second']
    layer = net.first
    columns = np.concatenate(
        [F.unfold(one[None], 3, padding=1)[0].numpy() for batch in inputs for one in batch], axis=1
    )
    columns = np.concatenate([columns, np.ones_like(columns[:1])]).T.astype(np.float64)
    wanted = (
        columns @ np.concatenate([layer.weight.detach().flatten(1).numpy(), layer.bias.detach()[:, None]], axis=1).T
    )
    for level in range(2):
        mask = layer.mask(level).flatten(1).numpy()
        for row in range(8):
            kept = np.append(mask[row], True)
            values = np.linalg.lstsq(columns[:, kept], wanted[:, row], rcond=None)[0]
            own = np.append(
                layer.level_weights[level][row].detach().flatten()[mask[row]], layer.level_biases[level][row].detach()
            )
            np.testing.assert_allclose(own, values, rtol=1e-3, atol=1e-4)


def test_every_level_comes_closer_to_the_dense_output_and_the_dense_one_stays() -> None:
    torch.manual_seed(0)
    net, inputs = supernet(Small()), batches(8)
    assert starts_dense(net)
    dense = {name: value.clone() for name, value in net.named_parameters() if 'level_' not in name}
    errors = []
    for fit in (lambda: None, lambda: reconstruct_levels(net, inputs)):
        fit()
        errors.append([(at_level(net, inputs[0], k) - at_level(net, inputs[0], -1)).square().mean() for k in (0, 1)])
    assert all(after < 0.7 * before for before, after in zip(*errors, strict=True))
    assert errors[1][1] < errors[1][0]
    assert not starts_dense(net)
    for name, value in dense.items():
        assert torch.equal(value, net.get_parameter(name)), name
    unused = prunable_layers(net)['unused']
    assert all(torch.equal(own, unused.weight) for own in unused.level_weights)


def largest(gram: Tensor, cross: Tensor, kept: Tensor, groups: Tensor, quota: Tensor) -> Tensor:
    """In place of ``eliminate``: the weights of a group with the largest |w| * rms(input)."""
    size = (torch.linalg.solve(gram, cross.T).T * gram.diagonal().sqrt()).abs().masked_fill(~kept, -1)
    chosen = torch.zeros_like(kept)
    for group, count in enumerate(quota.tolist()):
        members = (groups == group).nonzero()[:, 0]
        chosen.scatter_(1, members[size[:, members].argsort(dim=1, descending=True)[:, :count]], True)
    return chosen


def test_masks_are_those_of_the_pattern_and_lose_less_than_the_largest_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, errors = batches(8, channels=6), {}
    for choose in (largest, reconstruction.eliminate):
        monkeypatch.setattr(reconstruction, 'eliminate', choose)
        torch.manual_seed(0)
        net = supernet(nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)))
        reconstruct_levels(net, inputs)
        for layer in prunable_layers(net).values():
            for level, n in enumerate((1, 2)):
                groups = layer.mask(level).split(4, dim=1)
                assert all((group.sum(dim=1) == -(-n * group.shape[1] // 4)).all() for group in groups)
                assert (layer.level_weights[level][layer.mask(level)] != 0).all()
        errors[choose] = [(at_level(net, inputs[0], k) - at_level(net, inputs[0], -1)).square().mean() for k in (0, 1)]
    assert all(ours < theirs for theirs, ours in zip(*errors.values(), strict=True))


def test_a_linear_layer_is_fitted_over_its_tokens() -> None:
    torch.manual_seed(0)
    net = supernet(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)))
    x = [torch.rand(3, 40, 8)]
    before = (at_level(net, x[0], 0) - at_level(net, x[0], -1)).square().mean()
    assert reconstruct_levels(net, x) == ['0', '2']
    assert (at_level(net, x[0], 0) - at_level(net, x[0], -1)).square().mean() < 0.7 * before


def test_shared_weights_have_nothing_to_fit() -> None:
    net = supernet(Small(), weights='shared')
    before = [value.clone() for value in net.state_dict().values()]
    assert reconstruct_levels(net, batches(1)) == []
    assert not starts_dense(net)
    assert all(torch.equal(*pair) for pair in zip(before, net.state_dict().values(), strict=True))
