"""ClassPruningNet: any BasicSR architecture as a supernet with a classifier in front of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from cp_basicsr.engine import NetworkEngine, run_reference
from cp_basicsr.options import OptionError, check_keys, read_block
from cp_basicsr.precision import DEFAULT_PRECISION
from cp_basicsr.routing import Calibration
from cp_basicsr.routing.choice import DEFAULT_TILE, RoutingChoice
from cp_basicsr.routing.policy import check_budget
from cp_basicsr.sparsity import MacTable, Route, UniformRoute, bake_state_dict, convert, trace_macs

from .adapters import (
    LAYER_ADAPTERS,
    TRACE_LEAVES,
    check_usable,
    operator_flops,
    required_multiple,
    set_placements,
)
from .batches import groups_of, merge_groups
from .building import build_base, build_classifier, input_channels, read_pattern
from .restoring import Restored, restore, restore_by_map
from .state import describe, load_any_state
from .strips import Footprint, padded_halo, predict_strips
from .swinir_maps import on_maps
from .tiled import cut_costs


@ARCH_REGISTRY.register()
class ClassPruningNet(nn.Module):
    """A base network whose prunable layers run at several levels, a difficulty classifier and a calibrated policy.

    Args:
        base: options of any architecture in BasicSR's ARCH_REGISTRY, ``type`` included.
        sparsity: ``m``, ``levels``, ``layer_levels``, ``exclude``, ``weights``.
        classifier: options of the classifier, ``type`` included.

    Attributes:
        base: the supernet; its parameters keep their native names.
        base_options, sparsity_options, classifier_options: the three blocks, from which it can be built again.
        engine: runs the base network with compiled code.
        footprint: memory and reach of the base network, for images that must be restored in strips.
        choice: how ``net(x)`` chooses levels, and the precision it runs in; None: at the budget and tile it was
            trained for.
        not_placeable: for input shapes that were tried and had to be routed as a whole, the layer and the reason.
        warned: topics that the log has been warned of.

    Raises:
        OptionError: an option is unknown or wrong, or the architecture cannot be used.
        PatternError: the levels cannot be used.
    """

    def __init__(
        self,
        base: Mapping[str, Any] | None = None,
        sparsity: Mapping[str, Any] | None = None,
        classifier: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            check_keys(unknown, ['type', 'base', 'sparsity', 'classifier'], 'network_g')
        self.pattern = read_pattern(sparsity)
        self.sparsity_options = dict(sparsity)
        self.weights = sparsity.get('weights', 'shared')
        self.base_options = read_block(base, 'network_g.base', ' of keys, for example {type: EDSR}')
        self.base = build_base(self.base_options)
        self.conversion = convert(
            self.base,
            self.pattern,
            sparsity.get('exclude') or (),
            self.weights,
            adapters=LAYER_ADAPTERS,
            layer_levels=sparsity.get('layer_levels'),
        )
        check_usable(self.base)
        set_placements(self.base)
        form = ' of keys, for example {type: DifficultyClassifier}'
        options = read_block(classifier or {}, 'network_g.classifier', form)
        self.in_channels = options.pop('in_channels', None) or input_channels(self.base, self.base_options)
        self.classifier = build_classifier(options, len(self.levels), self.in_channels)
        self.classifier_options = {**options, 'type': type(self.classifier).__name__, 'in_channels': self.in_channels}
        self.calibration = Calibration(DEFAULT_TILE if self.classifier.by_tile else None)
        self.choice: RoutingChoice | None = None
        self.not_placeable: dict[tuple[int, ...], str] = {}
        self.warned: set[str] = set()
        self.engine = NetworkEngine(self.multiple, TRACE_LEAVES, _log, on_maps)
        self.footprint = Footprint()
        self._mac_tables: dict[tuple[int, ...], MacTable] = {}

    @property
    def levels(self) -> tuple[int, ...]:
        """N of each level, easy to hard."""
        return self.pattern.levels

    @property
    def labels(self) -> list[str]:
        """Text such as ``'2:4'`` for each level."""
        return [self.pattern.label(level) for level in range(len(self.levels))]

    @property
    def multiple(self) -> int:
        """Input heights and widths must be multiples of this number of pixels."""
        return required_multiple(self.base)

    @functools.cached_property
    def scale(self) -> int | None:
        """Output pixels for each input pixel along one side; None for networks that take no single image."""
        side = padded_halo(48, self.multiple)
        try:
            height, width = self.macs((self.in_channels, side, side)).output_shape[-2:]
        except Exception:  # the network's own code, given one image where it expects several, may raise anything
            return None
        return height // side if height == width else None

    def forward(
        self,
        x: Tensor,
        level: int | Tensor | None = None,
        *,
        each_level: Sequence[int] | None = None,
        level_map: tuple[Tensor, int] | None = None,
        predict_tile: int | None | bool = False,
    ) -> Tensor | tuple[dict[int | str, Tensor], Tensor | None]:
        """Restore a batch.

        Args:
            x: ``[B, C, H, W]``, or ``[B, T, C, H, W]`` for video networks, float in [0, 1].
            level: one level index for every sample, or a long tensor ``[B]`` with one for each. None: routed by
                classifier and policy in eval mode, the densest level in training mode.
            each_level: for training: run the whole batch at each of these levels.
            level_map: with ``each_level``: also run along this map, long ``[B, rows, columns]``, and tile in pixels.
            predict_tile: with ``each_level``: also predict, by tiles of this many pixels (None: whole patches).

        Returns:
            The restored batch; with ``each_level`` the outputs by level index (of a map under 'mixed'), and the
            classifier's log-probabilities ``[B, L, rows, columns]`` or None. (One call does it all, so that
            DistributedDataParallel sees it whole.)

        Raises:
            OptionError: the input has another number of channels than the network.
            PatternError: there is no such level.
        """
        self.check_shape(x.shape)
        if each_level is not None:
            outputs: dict[int | str, Tensor] = {level: self.run_level(x, level) for level in each_level}
            if level_map is not None:
                outputs['mixed'] = restore_by_map(self, x, *level_map).image
            return outputs, None if predict_tile is False else self.predict(x, predict_tile)
        if isinstance(level, Tensor):
            return self._run_each(x, level)
        if level is None and not self.training:
            return self.restore(x).image
        return self._restore_level(x, -1 if level is None else level)

    def restore(self, x: Tensor, choice: RoutingChoice | None = None) -> Restored:
        """Restore a batch and say what was spent; see :func:`cp_basicsr.archs.restoring.restore`."""
        self.check_shape(x.shape)
        return restore(self, x, choice or self.choice or self.calibration.trained_choice())

    def predict(self, x: Tensor, tile: int | None) -> Tensor:
        """Log-probabilities of the levels ``[B, L, rows, columns]``; frames of a video are averaged."""
        frames = x.flatten(0, 1) if x.dim() == 5 else x
        if tile is None or torch.is_grad_enabled():
            logits = self.classifier(frames, tile)
        else:
            logits = predict_strips(functools.partial(self.classifier, tile=tile), frames, tile)
        if x.dim() == 5:
            logits = logits.unflatten(0, x.shape[:2]).mean(dim=1)
        return logits.log_softmax(dim=1)

    def bake(self, level: int) -> nn.Module:
        """A plain base network in eval mode with the zeros of a level written in; it loads in unmodified BasicSR."""
        plain = build_base(self.base_options)
        plain.load_state_dict(bake_state_dict(self.base, self.pattern.index(level)), strict=True)
        parameter = next(self.base.parameters())
        return plain.to(device=parameter.device, dtype=parameter.dtype).eval()

    def macs(self, shape: Sequence[int]) -> MacTable:
        """MACs of one input of ``shape`` (without batch axis), classifier excluded."""
        shape = tuple(shape)
        if shape not in self._mac_tables:
            self.check_shape((1, *shape))
            self._mac_tables[shape] = trace_macs(self.base, (1, *shape), operator_flops())
        return self._mac_tables[shape]

    def classifier_macs(self, shape: Sequence[int], tile: int | None) -> int:
        """MACs of the classifier on one input of ``shape`` (without batch axis; every frame of a video)."""
        key = (*shape, -1 if tile is None else tile, 0)
        if key not in self._mac_tables:
            frames = tuple(shape) if len(shape) == 4 else (1, *shape)
            self._mac_tables[key] = trace_macs(self.classifier, frames, tile=tile)
        return self._mac_tables[key].dense

    def overhead(self, shape: Sequence[int], tile: int | None) -> float:
        """Share of the dense MACs that the classifier spends on one input of ``shape``."""
        tile = tile if self.classifier.by_tile else None
        return self.classifier_macs(shape, tile) / self.macs(shape).dense

    def check_budget(
        self,
        budget: float,
        shape: Sequence[int],
        tile: int | None,
        where: str = 'val.budget',
        overlap: int | None = None,
    ) -> None:
        """Refuse a budget that no mix of levels meets on an input of ``shape``.

        Raises:
            BudgetError: naming ``where`` it stands and the range that the levels allow.
        """
        cut = tile is not None and overlap is not None
        costs = cut_costs(self, shape, tile, overlap)[0] if cut else self.costs(shape)
        check_budget(budget, costs, self.overhead(shape, tile), where)

    def costs(self, shape: Sequence[int]) -> Tensor:
        """Share of the dense MACs that each level spends on one input of ``shape``: float64 ``[L]``, rising to 1."""
        table = self.macs(shape)
        return torch.tensor([table.level(k) / table.dense for k in range(len(self.levels))], dtype=torch.float64)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse an input whose ``shape``, batch axis included, is not ``[B, C, H, W]`` or ``[B, T, C, H, W]``.

        Raises:
            OptionError: it is not, or has another number of channels than the network.
        """
        if len(shape) not in (4, 5):
            raise OptionError(f'The input has shape {tuple(shape)}; allowed: [B, C, H, W] or [B, T, C, H, W].')
        if shape[-3] != self.in_channels:
            raise OptionError(
                f'The input has {shape[-3]} channel(s), but {self.base_options["type"]} was built for '
                f'{self.in_channels} (network_g.base). Convert the images, or build the network for their channels.'
            )

    def run_level(self, x: Tensor, level: int) -> Tensor:
        """The base network at one level, the whole input at once."""
        return self.run_base(x, UniformRoute(self.pattern.index(level)))

    def run_base(self, x: Tensor, route: Route, precision: str = DEFAULT_PRECISION) -> Tensor:
        """The base network along a route: by the engine in eval mode without gradients, else in PyTorch."""
        if self.training or torch.is_grad_enabled():
            return run_reference(self.base, x, route, precision)
        return self.engine.run(self.base, x, route, precision)

    def _restore_level(self, x: Tensor, level: int) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return self.run_level(x, level)
        precision = self.choice.precision if self.choice else DEFAULT_PRECISION
        return self.restore(x, RoutingChoice(level=level, precision=precision)).image

    def _run_each(self, x: Tensor, levels: Tensor) -> Tensor:
        """Samples of one level run together."""
        if levels.shape != x.shape[:1]:
            raise OptionError(f'level has shape {tuple(levels.shape)} for a batch of {x.shape[0]}; one index each.')
        indices = torch.tensor([self.pattern.index(int(level)) for level in levels], device=x.device)
        parts = [(rows, self._restore_level(x[rows], level)) for level, rows in groups_of(indices)]
        return merge_groups(parts, x.shape[0])

    def get_extra_state(self) -> Tensor:
        """A description of the network inside its checkpoint: JSON as uint8."""
        return torch.tensor(list(json.dumps(describe(self)).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to restore: the description is compared before loading."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load a ClassPruningNet checkpoint, or a plain one of the base network (recognised by its keys).

        Raises:
            CheckpointError: it belongs to another architecture or other levels.
        """
        return load_any_state(self, super().load_state_dict, state_dict, strict, assign)


def _log(sentence: str) -> None:
    get_root_logger().info(sentence)


def log_conversion(net: ClassPruningNet) -> None:
    """Say in BasicSR's log what became prunable and what stayed dense."""
    labels = ', '.join(net.labels)
    get_root_logger().info(
        f'{net.base_options["type"]}: {len(net.conversion.prunable)} prunable layers at levels {labels} '
        f'({net.weights} weights); left dense: {net.conversion.left_dense or "none"}.'
    )
