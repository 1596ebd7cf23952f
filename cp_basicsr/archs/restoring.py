"""Running a ClassPruningNet at test time: predict, choose levels, run along the route, count."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from cp_basicsr.engine.batched_tiles import run_cut_tiles
from cp_basicsr.options import OptionError
from cp_basicsr.precision import DEFAULT_PRECISION, check_precision
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.routing.policy import check_budget, levels_at_price, levels_for_budget, spent_share
from cp_basicsr.sparsity import LevelMapRoute, UniformRoute, UnplacedLayerError
from cp_basicsr.sparsity.placement import TileGrid

from .batches import groups_of, merge_groups
from .strips import WORTH_ASKING, Strips, WholeImageError, planned_strips, restore_strips, strips_within
from .tiled import cut_costs, tiles_of

if TYPE_CHECKING:
    from .class_pruning_arch import ClassPruningNet


# A classifier costs more than its share of an image smaller than a tile, and of any small one if it resizes its input.
# These get the nearest possible budget, lest one of them stop a whole test set.
SMALLEST_CHECKED = 64 * 64  # lq pixels


@dataclass(frozen=True)
class Restored:
    """A restored batch and what it took.

    Attributes:
        image: the network's output.
        levels: long ``[B, rows, columns]``, the level map (1 x 1 when routed as a whole).
        tile: side of a tile in lq pixels; None when routed as a whole.
        macs: MACs spent on the batch, classifier included.
        dense_macs: MACs of the base network on the same batch (padded, where the network needs padding).
        scale: output pixels for each lq pixel along one side.
    """

    image: Tensor
    levels: Tensor
    tile: int | None
    macs: int
    dense_macs: int
    scale: int

    @property
    def tile_side(self) -> int | None:
        """Side of a tile in pixels of the restored image; None when routed as a whole."""
        return self.tile and self.tile * self.scale

    @property
    def macs_share(self) -> float:
        """MACs as a fraction of the dense network's."""
        return self.macs / self.dense_macs


def restore(net: ClassPruningNet, x: Tensor, choice: RoutingChoice) -> Restored:
    """Restore ``x`` as ``choice`` asks.

    Args:
        net: the network; its mode (train or eval) is left alone.
        x: ``[B, C, H, W]`` or ``[B, T, C, H, W]``. Heights and widths are multiples of ``net.multiple``.
        choice: budget, level or argmax; by tile, cut tile or whole images; the precision.

    Raises:
        BudgetError: no mix of levels meets the budget.
        OptionError: the device does not compute in the precision asked for, or the classifier predicts no tiles.
    """
    check_precision(choice.precision, x.device)
    if choice.level is not None:
        level = net.pattern.index(choice.level)
        return restore_by_map(net, x, torch.full((x.shape[0], 1, 1), level), None, precision=choice.precision)
    tile = _usable_tile(net, x, choice)
    try:
        restored = restore_by_map(net, x, choose_levels(net, x, choice), tile, choice.overlap, choice.precision)
    except UnplacedLayerError as error:
        net.not_placeable[tuple(x.shape[1:])] = str(error)
        layer = str(error).partition(':')[0]
        _warn_once(
            net,
            f'{net.base_options["type"]} is routed by image, not by tile, at sizes such as {tuple(x.shape[-2:])}: the '
            f'outputs of a layer cannot be placed on the image ({error}). With `tile: {{size: 64, overlap: 8}}` under '
            'val it would be cut into tiles.',
            topic=f'placement of {layer}',
        )
        return restore(net, x, choice)
    classifier = net.classifier_macs(x.shape[1:], tile) * x.shape[0]
    return replace(restored, macs=restored.macs + classifier)


def restore_by_map(
    net: ClassPruningNet,
    x: Tensor,
    levels: Tensor,
    tile: int | None,
    overlap: int | None = None,
    precision: str = DEFAULT_PRECISION,
) -> Restored:
    """Restore ``x`` along a given level map; no classifier runs and none is counted.

    Args:
        net, x: as in :func:`restore`.
        levels: long ``[B, rows, columns]`` level indices, ``[B, 1, 1]`` for whole images.
        tile: side of a tile in lq pixels; None for whole images.
        overlap, precision: as in :class:`~cp_basicsr.routing.choice.RoutingChoice`.

    Raises:
        UnplacedLayerError: the outputs of a layer cannot be placed on the image.
    """
    if tile is not None and overlap is not None:
        run = partial(_run_uniform, net, precision=precision)
        pixels = int(net.footprint.limit / WORTH_ASKING)
        image, spent = run_cut_tiles(run, x, levels, tiles_of(net, x.shape, tile, overlap), pixels)
    elif strips := _strips(net, x, tile):
        run = partial(_run, net, tile=tile, precision=precision)
        image, spent = restore_strips(run, x, levels, tile, strips)
    else:
        image, spent = _run(net, x, levels, tile, precision)
    dense = net.macs(x.shape[1:]).dense * x.shape[0]
    return Restored(image, levels, tile, spent, dense, image.shape[-1] // x.shape[-1])


def _usable_tile(net: ClassPruningNet, x: Tensor, choice: RoutingChoice) -> int | None:
    """The tile asked for, or None where the network can only be routed by image."""
    placeable = x.dim() == 4 and tuple(x.shape[1:]) not in net.not_placeable
    if choice.tile is None or (choice.overlap is None and not placeable):
        return None
    check_by_tile(net, choice.tile)
    return choice.tile


def _warn_once(net: ClassPruningNet, message: str, topic: str) -> None:
    if topic not in net.warned:
        net.warned.add(topic)
        get_root_logger().warning(message)


def check_by_tile(net: ClassPruningNet, tile: int) -> None:
    """Raise an OptionError if the classifier predicts whole images only."""
    if not net.classifier.by_tile:
        raise OptionError(
            f'{type(net.classifier).__name__} predicts whole images, but val.tile asks for tiles of {tile}: '
            'write `tile: ~` under val.'
        )


def choose_levels(net: ClassPruningNet, x: Tensor, choice: RoutingChoice) -> Tensor:
    """The classifier's and the policy's level map of each image: long ``[B, rows, columns]``.

    Args and exceptions as in :func:`restore`; ``choice.level`` plays no part.
    """
    tile = _usable_tile(net, x, choice)
    shape = tuple(x.shape[1:])
    log_probs = net.predict(x, tile).detach().double().cpu()
    if choice.budget is None:
        return log_probs.argmax(dim=1)
    costs, areas = level_costs(net, x, tile, choice.overlap)
    overhead = net.overhead(shape, tile)
    if x.shape[-2] * x.shape[-1] >= SMALLEST_CHECKED:
        check_budget(choice.budget, costs, overhead)
    budget = choice.budget - overhead
    # Calibrated prices are for what levels cost where tiles do not overlap; where a level costs more, a MAC is cheaper.
    unit = 1.0 if choice.overlap is None else _span(net.costs(shape)) / _span(costs)
    images = log_probs.flatten(2).transpose(1, 2).contiguous()
    levels = [_choose_image(net, image, costs, choice, budget, areas, tile, unit) for image in images]
    return torch.stack(levels).view(-1, *log_probs.shape[2:])


def _choose_image(
    net: ClassPruningNet,
    log_probs: Tensor,
    costs: Tensor,
    choice: RoutingChoice,
    budget: float,
    areas: Tensor,
    tile: int | None,
    unit: float,
) -> Tensor:
    """Levels of the tiles of one image at the calibrated price times ``unit``, corrected where it strays beyond the
    tolerance.
    """
    scope = 'image' if tile is None else 'tile'
    budget = min(max(budget, float(costs[0])), float(costs[-1]))
    if not net.calibration.is_fitted(scope):
        _warn_once(
            net,
            f'This network has not been calibrated for routing by {scope}: its classifier may be untrained, and the '
            'budget is met on each image by itself. Train it through its classifier stage.',
            topic='calibration',
        )
        return levels_for_budget(log_probs, costs, budget, areas)
    if tile is not None and tile != int(net.calibration.tile):
        _warn_once(
            net,
            f'Tiles of {tile} pixels are routed, but the network was trained and calibrated with '
            f'{int(net.calibration.tile) or "whole images"}; budgets are met less well.',
            topic='tile',
        )
    levels = levels_at_price(log_probs, costs, unit * net.calibration.price(scope, budget, costs))
    strayed = spent_share(levels, costs, areas) - budget
    if choice.tolerance is None or tile is None or abs(strayed) <= choice.tolerance:
        return levels
    corrected = budget + (choice.tolerance if strayed > 0 else -choice.tolerance)
    return levels_for_budget(log_probs, costs, corrected, areas)


def _span(costs: Tensor) -> float:
    return float(costs[-1] - costs[0])


def level_costs(net: ClassPruningNet, x: Tensor, tile: int | None, overlap: int | None) -> tuple[Tensor, Tensor]:
    """What each level costs on one image of ``x``, and how the cost is spread over its tiles.

    Args:
        net, x: as in :func:`restore`.
        tile, overlap: as in :class:`~cp_basicsr.routing.choice.RoutingChoice`.

    Returns:
        Share of the dense MACs of each level: float64 ``[L]``; and the weight of each tile in raster order: float64
        ``[n]``, its pixels, or, cut, its MACs.
    """
    if tile is not None and overlap is not None:
        return cut_costs(net, x.shape[1:], tile, overlap)
    return net.costs(x.shape[1:]), tile_areas(x, tile)


def tile_areas(x: Tensor, tile: int | None) -> Tensor:
    """Pixels in each tile, in raster order: float64 ``[rows * columns]``."""
    if tile is None:
        return torch.ones(1, dtype=torch.float64)
    rows, columns = ((size - torch.arange(0, size, tile)).clamp(max=tile) for size in x.shape[-2:])
    return (rows[:, None] * columns[None]).flatten().double()


def _strips(net: ClassPruningNet, x: Tensor, tile: int | None) -> Strips | None:
    """The strips that ``x`` has to be restored in; None: it is restored at once."""
    if x.dim() != 4 or torch.is_grad_enabled():
        return None
    step = math.lcm(tile or 1, net.multiple)
    try:
        return planned_strips(net, x, step)
    except WholeImageError as error:
        name, halo = net.base_options['type'], net.footprint.inexact
        text = f'{name} depends on the whole image, but {error}; '
        if halo is None:
            _warn_once(net, f'{text}it cannot be run in strips and may not fit into memory.', topic='memory')
            return None
        text += f'it is run in strips that see {halo} rows beyond their own, and differs a little near their edges.'
        _warn_once(net, text, topic='memory')
        return strips_within(net, x, step, halo)


def _run(net: ClassPruningNet, x: Tensor, levels: Tensor, tile: int | None, precision: str) -> tuple[Tensor, int]:
    held = levels.unique()
    if len(held) == 1:
        return _run_uniform(net, x, int(held), precision)
    if tile is None:
        return _run_groups(net, x, levels.flatten(), precision)
    return _run_tiles(net, x, levels, tile, precision)


def _run_tiles(net: ClassPruningNet, x: Tensor, levels: Tensor, tile: int, precision: str) -> tuple[Tensor, int]:
    route = LevelMapRoute(TileGrid(levels.to(x.device), tile, x.shape[-2], x.shape[-1]))
    image = net.run_base(x, route, precision)
    return image, net.macs(x.shape[1:]).spent(route.positions, x.shape[0])


def _run_groups(net: ClassPruningNet, x: Tensor, levels: Tensor, precision: str) -> tuple[Tensor, int]:
    results = [(rows, *_run_uniform(net, x[rows], level, precision)) for level, rows in groups_of(levels.to(x.device))]
    return merge_groups([(rows, image) for rows, image, _ in results], x.shape[0]), sum(spent for *_, spent in results)


def _run_uniform(net: ClassPruningNet, x: Tensor, level: int, precision: str) -> tuple[Tensor, int]:
    route = UniformRoute(level)
    image = net.run_base(x, route, precision)
    return image, net.macs(x.shape[1:]).spent(route.positions, x.shape[0])
