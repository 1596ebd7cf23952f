"""A base network made ready to run as compiled code: its layers compiled, its graph traced and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cp_basicsr.sparsity import Route, UniformRoute, routed

from .compiled_network import CompiledNetwork, compile_layers
from .fusion import fused
from .instructions import InstructionSet
from .memory import adjacent
from .route import EngineRoute

# Of the largest output: how far a traced network may be from the untraced one, and one whose products are in bf16.
SAME, ROUNDED = 1e-4, 5e-2
SIDES = (24, 32, 64)  # pixels of the input on which they are compared: deep pyramids do not take every size


@dataclass(frozen=True)
class Prepared:
    """What runs in place of a base network, on the CPU, by one instruction set.

    Attributes:
        compiled: its layers.
        program: the traced network, or the base network itself.
        untraced: why it is not traced; None: it is.
    """

    compiled: CompiledNetwork
    program: Callable[[Tensor], Tensor]
    untraced: str | None

    def run(self, x: Tensor, route: Route, observe: Callable[[Route], Route]) -> Tensor:
        """The network's output along ``route``; ``observe`` as in :meth:`NetworkEngine.run`."""
        with routed(observe(EngineRoute(route, self.compiled))):
            output = self.program(x)
        return adjacent(output) if isinstance(output, Tensor) else output


def prepare(
    base: nn.Module,
    x: Tensor,
    instructions: InstructionSet,
    special: Callable[[nn.Module], Callable[[Tensor], Tensor] | None],
    leaf_functions: Iterable[Callable],
    multiple: int,
) -> Prepared:
    """Compile a base network for inputs like ``x``.

    Args:
        base: in eval mode.
        x: ``[B, C, H, W]`` float32; of other shapes networks are not traced.
        instructions: what code is made of.
        special, leaf_functions, multiple: as for :class:`~cp_basicsr.engine.network_engine.NetworkEngine`.

    Raises:
        EngineUnavailableError: the system gives no executable memory.
    """
    program, dense, why = base, [], None
    if x.dim() == 4:
        try:
            program, dense = fused(special(base) or base, instructions.outputs, leaf_functions)
        except Exception as error:  # the network's own code, run on symbols, may raise anything
            why = f'{type(error).__name__} while tracing'
    compiled = compile_layers(base, dense, instructions)
    limit = ROUNDED if instructions.paired else SAME
    if program is not base and not _agrees(program, base, x.shape[1], compiled, multiple, limit):
        program, why = base, 'the traced network computes something else'
    return Prepared(compiled, program, why)


def _agrees(
    program: Callable[[Tensor], Tensor],
    base: nn.Module,
    channels: int,
    compiled: CompiledNetwork,
    multiple: int,
    limit: float,
) -> bool:
    """Whether the graph computes what the network does, on a small input of another size than any before."""
    for side in (multiple * -(-side // multiple) for side in SIDES):
        sample = torch.rand((1, channels, side, 2 * side), generator=torch.Generator().manual_seed(0))
        try:
            with routed(UniformRoute(-1)):
                expected = base(sample)
            with routed(EngineRoute(UniformRoute(-1), compiled)):
                output = program(sample)
        except (RuntimeError, TypeError, ValueError, AssertionError):
            continue
        error = (output - expected).abs().max() if output.shape == expected.shape else torch.inf
        return bool(error <= limit * expected.abs().max())
    return False
