"""Adam for sparse levels with values of their own, in coordinates in which the inputs of their layers are white.

The weights that a level keeps meet inputs that are strongly correlated: a small step of one weight disturbs the output
much, the same step of several at once hardly. Adam scales each weight alone and has to make its steps small enough for
the former. Here each row of a level is ``w = C^-T v`` with ``C C^T`` the mean products of the inputs that the row
keeps, so that a step of ``v`` changes the layer's output by its own length, and Adam works on ``v``: Natural Neural
Networks, arXiv 1507.00210, do so for whole layers, K-FAC, arXiv 1503.05671, has the same factor.

Squared distance of level 32:64 of CDnCNN to its dense level, share of the distance that the least-squares start left,
after 40 and 60 steps (sigma 25, four patches of 64 x 64): 0.51 and 0.40 at a rate of 3e-5; Adam at 1e-5 1.33 and 1.13,
at 3e-4 it breaks the network. M6C40 x2, level 20:40, after 100 and 400 steps: 0.79 and 0.68; Adam 0.86 and 0.74.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cp_basicsr.losses.across_processes import mean_over_processes
from cp_basicsr.options import OptionError
from cp_basicsr.sparsity import PrunableLayer, as_rows, dense_moments, prunable_layers, ridge


class WhitenedAdam(torch.optim.Adam):
    """Adam on every sparse level of a supernet.

    The inverse factors of each level are kept: 4 bytes for each row and pair of weights in it. CDnCNN (18 layers of 64
    channels) at levels 16, 24, 32 and 48 of 64 needs 1.5 GB. They follow from the dense network and the images, so a
    resumed run computes them again.

    Args:
        net: base network with ``per_level`` weights.
        lr: length of a step relative to the layer's outputs: a weight's share of the root mean square of what its row
            gives on the dense network.
        options: Adam's others, but for ``weight_decay``: what is stepped is not the weights.

    Raises:
        OptionError: the levels share their weights, or weights are to decay.
    """

    def __init__(self, net: nn.Module, lr: float, **options: Any) -> None:
        layers = {name: layer for name, layer in prunable_layers(net).items() if layer.level_weights is not None}
        if not layers:
            raise OptionError(
                'optim_g.type is WhitenedAdam, which trains levels with values of their own; write '
                '`weights: per_level` in network_g.sparsity, or `type: Adam`.'
            )
        if options.get('weight_decay'):
            raise OptionError(
                f'optim_g.weight_decay is {options["weight_decay"]!r}; allowed: 0, because what WhitenedAdam steps are '
                'not the weights themselves.'
            )
        self._rows = {
            name: [_LevelRows(layer, level) for level in range(layer.pattern.densest)] for name, layer in layers.items()
        }
        super().__init__([rows.values for rows in self._all()], lr=lr, **options)

    @property
    def whitened(self) -> bool:
        """Whether :meth:`whiten` has been called."""
        return all(rows.scale is not None for rows in self._all())

    @torch.no_grad()
    def whiten(self, net: nn.Module, images: Sequence[Tensor]) -> None:
        """Compute the coordinates. Layers without plain products, or not reached, keep those of their weights.

        Args:
            net: the network that was given first.
            images: batches of its inputs; each process may have its own, all get the same coordinates.
        """
        moments = {name: mean_over_processes(gram) for name, gram in dense_moments(net, images).items()}
        for name, levels in self._rows.items():
            for rows in levels:
                rows.whiten(moments.get(name))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the levels' own parameters, too."""
        super().zero_grad(set_to_none)
        for rows in self._all():
            for parameter in rows.parameters():
                parameter.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of the levels that have a gradient."""
        moved = [rows for rows in self._all() if rows.take_gradient()]
        super().step(closure)
        for rows in moved:
            rows.move()

    def _all(self) -> list[_LevelRows]:
        return [rows for levels in self._rows.values() for rows in levels]


class _LevelRows:
    """The kept weights and the bias of each output channel of one level.

    Attributes:
        values: ``[rows, k]``, where they have gone in white coordinates since the last step; Adam's parameter.
        scale: ``[rows, 1]``, root mean square of the dense layer's outputs; None before :meth:`whiten`.
    """

    def __init__(self, layer: PrunableLayer, level: int) -> None:
        self._layer, self._level = layer, level
        self.values = nn.Parameter(layer.level_weights[level].new_zeros(self._columns().shape))
        self.scale: Tensor | None = None
        self._inverse: Tensor | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The level's weight and its bias where it has one."""
        biases = self._layer.level_biases
        return [self._layer.level_weights[self._level], *([] if biases is None else [biases[self._level]])]

    def whiten(self, gram: Tensor | None) -> None:
        """Take the coordinates of mean products ``[K, K]``; None: those of the weights."""
        dense = as_rows(*self._layer.dense_values())
        if gram is None:
            self.scale = dense.norm(dim=1, keepdim=True).float()
            return
        gram = gram + ridge(gram) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        self.scale = ((dense @ gram) * dense).sum(dim=1, keepdim=True).sqrt().float()
        self._inverse = self.values.new_empty(*self.values.shape, self.values.shape[1])
        for row, columns in enumerate(self._columns()):  # one by one: in float64 all together are large
            factor = torch.linalg.cholesky(gram[columns][:, columns])
            one = torch.eye(len(columns), dtype=gram.dtype, device=gram.device)
            self._inverse[row] = torch.linalg.solve_triangular(factor, one, upper=False)

    def take_gradient(self) -> bool:
        """Give ``values`` the level's gradient; whether it has one."""
        gradients = [parameter.grad for parameter in self.parameters()]
        if gradients[0] is None:
            self.values.grad = None
            return False
        kept = _joined(gradients).gather(1, self._columns())
        self.values.grad = kept if self._inverse is None else (self._inverse @ kept[:, :, None])[:, :, 0]
        return True

    def move(self) -> None:
        """Move the level by what Adam has made of ``values``, which are zero again."""
        step = self.values if self._inverse is None else (self._inverse.mT @ self.values[:, :, None])[:, :, 0]
        weight, *bias = self.parameters()
        moved = torch.zeros_like(_joined([weight, *bias])).scatter_(1, self._columns(), step * self.scale)
        weight += moved[:, : weight[0].numel()].view_as(weight)
        for value in bias:
            value += moved[:, -1]
        self.values.zero_()

    def _columns(self) -> Tensor:
        """Which weights each row keeps, the bias last: long ``[rows, k]``; as many in every row."""
        mask = self._layer.mask(self._level).flatten(1)
        if self._layer.level_biases is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return mask.nonzero()[:, 1].view(len(mask), -1)


def _joined(values: Sequence[Tensor]) -> Tensor:
    """A weight and its bias, if any, as rows ``[out, K]``."""
    weight, *bias = values
    return torch.cat([weight.flatten(1), *(value[:, None] for value in bias)], dim=1)
