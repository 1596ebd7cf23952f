"""A route whose layers run as compiled code: same levels, same counts, other means."""

from __future__ import annotations

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cp_basicsr.sparsity import ImagePlacement, NMLinear, Placement, PrunableLayer, Route

from .compiled_layer import PLAIN, CompiledLayer, Epilogue
from .compiled_network import CompiledNetwork
from .inputs import Inputs
from .job import Activation
from .schedule import Schedule, level_schedule, uniform_schedule

LONGEST_ROW = 512  # tokens; so many rows share out well over the threads


class EngineRoute(Route):
    """Runs another route's levels with compiled layers; layers that are not compiled run as that route runs them.

    Args:
        route: says the levels and counts what ran.
        compiled: the layers.
    """

    def __init__(self, route: Route, compiled: CompiledNetwork) -> None:
        super().__init__()
        self.route = route
        self.positions = route.positions
        self.compiled = compiled
        self._schedules: dict[Hashable, Schedule] = {}
        self._upwards = False

    def run(self, layer: PrunableLayer, x: Tensor) -> Tensor:
        return self.run_with(layer, Inputs((x,)), PLAIN)

    def levels_of(
        self, layer: PrunableLayer, shape: tuple[int, ...], placement: Placement | None = None
    ) -> tuple[int | Tensor, dict[int, int]]:
        return self.route.levels_of(layer, shape, placement)

    def run_with(self, module: nn.Module, inputs: Inputs, epilogue: Epilogue) -> Tensor:
        """Outputs of a prunable layer or dense convolution after ``epilogue``.

        A global layer (a map of 1 x 1) and what is not compiled run in PyTorch.
        """
        layer = self.compiled_layer(module, inputs)
        if layer is None:
            x = inputs.made()
            output = self.route.run(module, x) if isinstance(module, PrunableLayer) else module(x)
            return applied(epilogue, output)
        if isinstance(module, NMLinear):
            return self._run_tokens(module, layer, inputs.parts[0], epilogue)
        shape = (inputs.shape[0], layer.out_width, *layer.out_size(*inputs.shape[2:]))
        schedule = self._schedule(module, layer, shape, shape)
        after = self.compiled.activations.get(module)
        if after is not None:
            return applied(epilogue, after(self._compute(layer, inputs, schedule)))
        if epilogue.residual is not None and not _same_shape(epilogue.residual, shape, epilogue.shuffle):
            return applied(epilogue, self._compute(layer, inputs, schedule))
        return self._compute(layer, inputs, schedule, epilogue)

    def compiled_layer(self, module: nn.Module, inputs: Inputs) -> CompiledLayer | None:
        """The compiled layer that computes a module's outputs for these inputs; None: PyTorch does."""
        layer = self.compiled.layers.get(module)
        return layer if layer is not None and _fits(module, inputs, layer) else None

    def _compute(self, layer: CompiledLayer, inputs: Inputs, schedule: Schedule, epilogue: Epilogue = PLAIN) -> Tensor:
        """Run a layer in the direction opposite to the last one's: what that computed last is still in the cache."""
        self._upwards = not self._upwards
        return layer.run(inputs, schedule, epilogue, self._upwards)

    def run_pixels(self, module: NMLinear, x: Tensor, epilogue: Epilogue = PLAIN) -> Tensor:
        """A compiled Linear on every pixel of a map that spans the image: ``[B, in, H, W]`` -> ``[B, out, H, W]``.

        Each pixel takes its tile's level, whatever order the network itself would have its tokens in.
        """
        layer = self.compiled.layers[module]
        shape = (x.shape[0], layer.out_width, *x.shape[2:])
        schedule = self._schedule(module, layer, shape, shape, ImagePlacement())
        return self._compute(layer, Inputs((x,)), schedule, epilogue)

    def _run_tokens(self, module: NMLinear, layer: CompiledLayer, x: Tensor, epilogue: Epilogue) -> Tensor:
        """Tokens ``[..., C]`` as the pixels of one map."""
        tokens = x.numel() // layer.in_width
        columns = _row_length(tokens)
        pixels = (1, layer.out_width, tokens // columns, columns)
        shape = (*x.shape[:-1], layer.out_width)
        feature_map = x.reshape(tokens, layer.in_width).T.contiguous().view(1, layer.in_width, *pixels[2:])
        output = self._compute(layer, Inputs((feature_map,)), self._schedule(module, layer, shape, pixels))
        return applied(epilogue, output.reshape(layer.out_width, tokens).T.reshape(shape))

    def _schedule(
        self,
        module: nn.Module,
        layer: CompiledLayer,
        shape: tuple[int, ...],
        pixels: tuple[int, ...],
        placement: Placement | None = None,
    ) -> Schedule:
        """Levels of an output of ``shape``, which is computed as a map of shape ``pixels``."""
        levels, place = 0, None
        if isinstance(module, PrunableLayer):
            place = placement or module.placement
            levels, counts = self.route.levels_of(module, shape, place)
            self.route.count(module, counts)
        uniform = levels if isinstance(levels, int) else None
        strip = (layer.scratch.rows, layer.scratch.vectors)
        # Pixels too: a map and a list of tokens may have the same shape, with their channels at different places.
        key = (strip, shape, pixels, uniform, place if uniform is None else None)
        if key not in self._schedules:
            threads = torch.get_num_threads()
            if uniform is not None:
                schedule = uniform_schedule(pixels[0], *pixels[2:], uniform, layer.scratch, threads)
            else:
                schedule = level_schedule(levels.reshape(pixels[0], *pixels[2:]).numpy(), layer.scratch, threads)
            self._schedules[key] = schedule
        return self._schedules[key]


def applied(epilogue: Epilogue, output: Tensor) -> Tensor:
    """The same in PyTorch."""
    if epilogue.activation is Activation.RELU:
        output = F.relu(output)
    elif epilogue.activation is Activation.SLOPE:
        output = F.prelu(output, epilogue.slopes)
    elif epilogue.activation is Activation.GELU:
        output = F.gelu(output)
    if epilogue.shuffle > 1:
        output = F.pixel_shuffle(output, epilogue.shuffle)
    if epilogue.residual is not None:
        output = output * epilogue.scale + epilogue.residual
    return output


def _fits(module: nn.Module, inputs: Inputs, layer: CompiledLayer) -> bool:
    """Whether a compiled layer can take these inputs; a map or list of one position is not worth it."""
    parts, first = inputs.parts, inputs.parts[0]
    if any(part.dtype != torch.float32 or part.device.type != 'cpu' for part in parts):
        return False
    if isinstance(module, NMLinear):
        return len(parts) == 1 and first.shape[-1] == layer.in_width < first.numel()
    if any(part.dim() != 4 or part.shape[0] != first.shape[0] or part.shape[2:] != first.shape[2:] for part in parts):
        return False
    height, width = layer.out_size(*inputs.shape[2:])
    return inputs.shape[1] == layer.in_width and height > 0 < width and height * width > 1


def _same_shape(residual: Tensor, shape: tuple[int, ...], shuffle: int) -> bool:
    images, channels, height, width = shape
    return tuple(residual.shape) == (images, channels // shuffle**2, height * shuffle, width * shuffle)


def _row_length(tokens: int) -> int:
    """The longest row of whole vectors that divides the tokens, else all of them."""
    return next((n for n in range(min(LONGEST_ROW, tokens) // 16 * 16, 0, -16) if tokens % n == 0), tokens)
