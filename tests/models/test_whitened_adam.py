"""Adam in white coordinates, against numpy: the length of its steps, what it leaves alone, and what it is for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import build, network_options, train, training_options

from cp_basicsr.models.whitened_adam import WhitenedAdam
from cp_basicsr.options import OptionError
from cp_basicsr.sparsity import NMPattern, UniformRoute, convert, reconstruct_levels, routed
from cp_basicsr.sparsity.moments import RIDGE

pytestmark = pytest.mark.usefixtures('one_thread')
LR = 1e-2
EPS = 1.0  # of Adam; large, so that no step hangs on the sign of next to nothing


class Layers(nn.Module):
    """A convolution with a bias, one without, a Linear on the channels, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.last = nn.Linear(8, 4)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu().movedim(1, -1))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = Layers()
    convert(layers, NMPattern(4, [1, 2, 4]), weights='per_level')
    return layers.eval()


def images(count: int = 3) -> list[Tensor]:
    """Neighbouring pixels and all channels are much alike, as in photographs."""
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(2, 1, 4, 4 + index, generator=generator) for index in range(count)]
    return [
        F.interpolate(one, scale_factor=4, mode='bilinear') + 0.05 * torch.rand(2, 4, 1, 1, generator=generator)
        for one in coarse
    ]


def at_level(net: nn.Module, x: Tensor, level: int) -> Tensor:
    with routed(UniformRoute(level)):
        return net(x)


def values_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def inputs_of(name: str, net: nn.Module) -> np.ndarray:
    """What each output position of a layer multiplies its weights with: ``[K, positions]``, unfolded by hand."""
    found: list[Tensor] = []
    handle = getattr(net, name).register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    with torch.no_grad():
        for batch in images():
            at_level(net, batch, 2)
    handle.remove()
    if name == 'last':
        columns = torch.cat([one.reshape(-1, 8) for one in found]).T
    else:
        stride = 2 if name == 'second' else 1
        columns = torch.cat([F.unfold(one, 3, padding=1, stride=stride).movedim(1, 0).flatten(1) for one in found], 1)
    bias = [] if name == 'second' else [torch.ones(1, columns.shape[1])]
    return torch.cat([columns, *bias]).double().numpy()


@pytest.mark.parametrize('name', ['first', 'second', 'last'])
def test_the_first_step_changes_each_output_as_numpy_says(net: nn.Module, name: str) -> None:
    """Adam's first step is v / (|v| + eps), so w moves by that of v = C^-1 g, times -lr rms(dense output) C^-T."""
    optimizer = WhitenedAdam(net, LR, eps=EPS)
    optimizer.whiten(net, images())
    layer, before = getattr(net, name), values_of(net)
    at_level(net, images()[0], 1).square().sum().backward()
    weight, bias = layer.level_weights[1], None if name == 'second' else layer.level_biases[1]
    gradient = weight.grad.flatten(1).clone()
    dense, mask = layer.weight.detach().flatten(1), layer.mask(1).flatten(1)
    if bias is not None:
        gradient = torch.cat([gradient, bias.grad[:, None]], 1)
        dense = torch.cat([dense, layer.bias.detach()[:, None]], 1)
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.bool)], 1)
    optimizer.step()

    columns = inputs_of(name, net)
    gram = columns @ columns.T / columns.shape[1]
    gram += RIDGE * gram.diagonal().mean() * np.eye(len(gram))
    moved = weight.detach().flatten(1) - before[f'{name}.level_weights.1'].flatten(1)
    if bias is not None:
        moved = torch.cat([moved, (bias.detach() - before[f'{name}.level_biases.1'])[:, None]], 1)
    for row in range(len(mask)):
        kept = mask[row].numpy()
        factor = np.linalg.cholesky(gram[np.ix_(kept, kept)])
        size = np.sqrt(dense[row].double().numpy() @ gram @ dense[row].double().numpy())
        white = np.linalg.solve(factor, gradient[row].double().numpy()[kept])
        expected = np.zeros(len(kept))
        expected[kept] = -LR * size * np.linalg.solve(factor.T, white / (abs(white) + EPS))
        np.testing.assert_allclose(moved[row], expected, rtol=2e-3, atol=2e-3 * abs(expected).max())


def test_other_levels_the_dense_network_and_masked_weights_stay(net: nn.Module) -> None:
    optimizer = WhitenedAdam(net, LR)
    optimizer.whiten(net, images())
    before = values_of(net)
    for _ in range(2):
        optimizer.zero_grad()
        at_level(net, images()[0], 1).square().sum().backward()
        optimizer.step()
    after = values_of(net)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    of_level = {f'{name}.level_weights.1' for name in ('first', 'second', 'last')}
    assert moved == of_level | {'first.level_biases.1', 'last.level_biases.1'}
    for name in ('first', 'second', 'last'):
        masked = ~getattr(net, name).mask(1)
        assert torch.equal(before[f'{name}.level_weights.1'][masked], after[f'{name}.level_weights.1'][masked])


@pytest.mark.parametrize('level', [0, 1])
def test_a_level_comes_closer_to_the_dense_network_than_with_adam_at_any_rate(net: nn.Module, level: int) -> None:
    batch = torch.cat([one[..., :16] for one in images()])
    reconstruct_levels(net, images())
    start = values_of(net)
    with torch.no_grad():
        target = at_level(net, batch, 2)

    def distance_after(optimizer: torch.optim.Optimizer) -> float:
        net.load_state_dict(start)
        if isinstance(optimizer, WhitenedAdam):
            optimizer.whiten(net, images())
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.mse_loss(at_level(net, batch, level), target)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    levels = [value for name, value in net.named_parameters() if '.level_' in name]
    white = min(distance_after(WhitenedAdam(net, lr)) for lr in (3e-4, 1e-3, 3e-3))
    adam = min(distance_after(torch.optim.Adam(levels, lr)) for lr in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
    assert white < adam


def test_layers_that_are_not_reached_move_by_the_length_of_their_weights(net: nn.Module) -> None:
    optimizer = WhitenedAdam(net, LR)
    assert not optimizer.whitened
    optimizer.whiten(net, images())
    assert optimizer.whitened
    layer = net.unused
    before = layer.level_weights[1].detach().clone()
    layer.level_weights[1].grad, layer.level_biases[1].grad = torch.ones_like(before), torch.ones(4)
    optimizer.step()
    lengths = torch.cat([layer.weight.detach().flatten(1), layer.bias.detach()[:, None]], 1).norm(dim=1)
    expected = -LR * lengths[:, None, None, None] * layer.mask(1)
    torch.testing.assert_close(layer.level_weights[1].detach() - before, expected, rtol=1e-4, atol=1e-7)


def options_of(folder: Path, weights: str, stage: str) -> dict[str, Any]:
    options = training_options(folder)
    options['network_g'] = network_options(weights=weights)
    for entry in options['train']['stages']:
        if entry['name'] == stage:
            entry['optim_g'] = {'type': 'WhitenedAdam', 'lr': 1e-4}
    return options


def test_the_model_refuses_it_where_it_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r'WhitenedAdam, which trains levels .* write `weights: per_level`'):
        build(options_of(tmp_path, 'shared', 'supernet'))
    with pytest.raises(OptionError, match=r'WhitenedAdam trains sparse levels only, in stage supernet'):
        build(options_of(tmp_path, 'per_level', 'classifier'))
    decaying = options_of(tmp_path, 'per_level', 'supernet')
    decaying['train']['stages'][0]['optim_g']['weight_decay'] = 1e-4
    with pytest.raises(OptionError, match=r'weight_decay is 0\.0001; allowed: 0, because'):
        build(decaying)


def test_the_model_trains_with_it_and_goes_on_to_the_next_stage(tmp_path: Path) -> None:
    model = build(options_of(tmp_path, 'per_level', 'supernet'))
    dense = model.net.base.body[0].weight.detach().clone()
    train(model, 1, 2)
    assert isinstance(model.optimizer_g, WhitenedAdam) and model.optimizer_g.whitened
    train(model, 3, 6)
    assert model.stage.name == 'joint' and not isinstance(model.optimizer_g, WhitenedAdam)
    assert torch.equal(model.net.base.body[0].weight, dense)
