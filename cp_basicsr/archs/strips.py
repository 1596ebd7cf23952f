"""Images too large for memory, restored in strips: whole rows of tiles with as many more rows as the network sees.

A strip's own rows are what the whole image gives; only networks that depend on the whole image are, where
:attr:`Footprint.inexact` asks for it, approximated. The work on halos is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

if TYPE_CHECKING:
    from .class_pruning_arch import ClassPruningNet

LIMIT = 7 * 2**29  # bytes of feature maps at once; EDSR-baseline restores 3840 x 2160 pixels within it
WORTH_ASKING = LIMIT / (512 * 512)  # bytes for each lq pixel; no architecture of BasicSR's comes near so many
FARTHEST = 256  # lq rows; strips of networks that reach further would be mostly halo
PREDICTED_AT_ONCE = 2**22  # lq pixels; the classifier's maps of so many take a few hundred MiB
PREDICTION_REACH = 128  # lq rows beyond its neighbours' tiles that a prediction depends on, at most
PREDICTION_STEP = 8  # lq rows: strides of classifiers of one's own divide it
HALVINGS = 4  # of a network's maps, at most; deeper pyramids should say what their inputs must be multiples of
SAME = 1e-4  # of the largest output: how far outputs of a moved image may be from the moved outputs


@dataclass(frozen=True)
class Reach:
    """Lq rows above and below that an output row depends on, where strips begin at multiples of ``step`` rows."""

    rows: int
    step: int


@dataclass
class Footprint:
    """What one network needs, measured when it is first asked for, and what it may take.

    Attributes:
        limit: bytes of feature maps at once; images that need more are restored in strips.
        inexact: lq rows above and below the strips of a network that depends on the whole image; None: it is run at
            once, whatever the limit says.
        bytes_per_pixel: of feature maps, for each lq pixel.
        reach: by the number of rows that strips are asked to be multiples of; None: outputs depend on the whole image.
    """

    limit: int = LIMIT
    inexact: int | None = None
    bytes_per_pixel: float | None = None
    reach: dict[int, Reach | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Strips:
    """Own lq rows of each strip, and further rows above and below, all multiples of ``step``."""

    rows: int
    halo: int
    step: int

    def windows(self, height: int) -> Iterator[tuple[int, int, int, int]]:
        """For each strip of an image its first and last row and its own first and last (both last exclusive).

        All have the same size, within a step: blocks of memory then serve every strip. So the first and the last one,
        which need one halo only, own more.
        """
        size, own = self.rows + 2 * self.halo, 0
        while own < height:
            first = min(max(own - self.halo, 0), max(height - size, 0) // self.step * self.step)
            last = min(first + size, height) if height - first - size >= self.step else height
            own_last = height if last == height else last - self.halo
            yield first, last, own, own_last
            own = own_last


def planned_strips(net: ClassPruningNet, x: Tensor, step: int) -> Strips | None:
    """Strips within ``net.footprint.limit``, or as small as they get, cut at multiples of ``step`` lq rows.

    Returns:
        None where the whole image fits.

    Raises:
        WholeImageError: it does not, and the network depends on more than :data:`FARTHEST` rows.
    """
    needs, pixels = net.footprint, x.shape[0] * x.shape[-2] * x.shape[-1]
    if WORTH_ASKING * pixels < needs.limit:
        return None
    if needs.bytes_per_pixel is None:
        needs.bytes_per_pixel = _bytes_per_pixel(net, x)
    if needs.bytes_per_pixel * pixels <= needs.limit:
        return None
    if step not in needs.reach:
        needs.reach[step] = _reach(net, x, step)
    reach = needs.reach[step]
    if reach is None:
        size = needs.bytes_per_pixel * pixels / 2**30
        raise WholeImageError(f'images such as {tuple(x.shape[-2:])} take {size:.1f} GiB')
    return strips_within(net, x, reach.step, reach.rows)


def strips_within(net: ClassPruningNet, x: Tensor, step: int, halo: int) -> Strips:
    """Strips within the limit, or as small as they get; args as in :func:`planned_strips`, whose footprint is known."""
    needs, halo = net.footprint, padded_halo(halo, step)
    affordable = int(needs.limit / (needs.bytes_per_pixel * x.shape[0] * x.shape[-1])) - 2 * halo
    return Strips(max(affordable // step, 1) * step, halo, step)


class WholeImageError(RuntimeError):
    """A network cannot be run in strips."""


def padded_halo(halo: int, step: int) -> int:
    """The halo as whole steps, so that strips begin where tiles do."""
    return -(-halo // step) * step


def restore_strips(
    run: Callable[[Tensor, Tensor], tuple[Tensor, int]],
    x: Tensor,
    levels: Tensor,
    tile: int | None,
    strips: Strips,
) -> tuple[Tensor, int]:
    """Run ``x`` strip by strip.

    Args:
        run: gives output and MACs of a strip and its level map.
        x: ``[B, C, H, W]``.
        levels: ``[B, tile rows, tile columns]``, ``[B, 1, 1]`` without tiles.
        tile: side of a tile in lq pixels, which divides ``rows`` and ``halo``; None: whole images.
        strips: whose rows and halo are whole tiles.

    Returns:
        The whole output and the MACs of all strips, halos included.
    """
    height = x.shape[-2]
    output, total = None, 0
    for first, last, top, bottom in tqdm(list(strips.windows(height)), desc='strips', leave=False):
        part = levels if tile is None else levels[:, first // tile : -(-last // tile)]
        strip, macs = run(x[..., first:last, :], part)
        scale = strip.shape[-2] // (last - first)
        if output is None:
            output = strip.new_empty((*strip.shape[:-2], height * scale, strip.shape[-1]))
        output[..., top * scale : bottom * scale, :] = strip[..., (top - first) * scale : (bottom - first) * scale, :]
        total += macs
    return output, total


def predict_strips(run: Callable[[Tensor], Tensor], x: Tensor, tile: int) -> Tensor:
    """Predictions for the tiles of images of any size, which are the same as for the whole image at once.

    Args:
        run: gives the logits ``[B, L, ceil(H / tile), ceil(W / tile)]`` of a strip.
        x: ``[B, C, H, W]``.
        tile: side of a tile in lq pixels.
    """
    step = math.lcm(tile, PREDICTION_STEP)
    rows = max(PREDICTED_AT_ONCE // (x.shape[0] * x.shape[-1] * step), 1) * step
    if rows >= x.shape[-2]:
        return run(x)
    strips = Strips(rows, padded_halo(tile + PREDICTION_REACH, step), step)
    parts = [
        run(x[..., first:last, :])[..., (top - first) // tile : -(-(bottom - first) // tile), :]
        for first, last, top, bottom in strips.windows(x.shape[-2])
    ]
    return torch.cat(parts, dim=-2)


def _side(net: ClassPruningNet) -> int:
    return padded_halo(48, net.multiple)


def _bytes_per_pixel(net: ClassPruningNet, x: Tensor) -> float:
    height, width = (
        _side(net),
        padded_halo(512, net.multiple),
    )  # wide, so that the room at the end of rows matters little
    with _PeakMemory() as peak:
        net.run_level(x.new_zeros((1, x.shape[1], height, width)), -1)
    return peak.bytes / (height * width)


def _reach(net: ClassPruningNet, x: Tensor, step: int) -> Reach | None:
    """How far the network sees, with a step at which it computes the same wherever an image begins.

    What a network that halves its maps makes of a row depends on whether the row is an even one.
    """
    for wider in (step * 2**halvings for halvings in range(HALVINGS + 1)):
        rows = _rows_seen(net, x, wider)
        if rows is None:
            return None
        if _moves(net, x, wider, rows):
            return Reach(rows, wider)
    return None


def _rows_seen(net: ClassPruningNet, x: Tensor, step: int) -> int | None:
    """Lq rows that an output row depends on, above and below a border at a multiple of ``step``.

    NaN travels along every dependence, however weak, so that one pass shows them all.
    """
    for half in (padded_halo(rows, step) for rows in (64, FARTHEST)):
        tall = x.new_zeros((1, x.shape[1], 2 * half, _side(net)))
        above, below = tall.clone(), tall.clone()
        above[..., :half, :] = below[..., half:, :] = torch.nan
        spoilt = [net.run_level(x, -1).isnan().flatten(0, -3).any(dim=(0, 2)).nonzero() for x in (above, below)]
        scale = net.run_level(tall, -1).shape[-2] // (2 * half)
        reach = max(int(spoilt[0].max()) // scale + 1 - half, half - int(spoilt[1].min()) // scale)
        if reach < half:
            return reach
    return None


def _moves(net: ClassPruningNet, x: Tensor, step: int, rows: int) -> bool:
    """Whether an image that begins ``step`` rows later gives the same, but for ``rows`` at its borders."""
    height = padded_halo(2 * rows, step) + 2 * step
    image = torch.rand((1, x.shape[1], height, _side(net)), generator=torch.Generator().manual_seed(0)).to(x)
    whole, moved = (net.run_level(part, -1) for part in (image, image[..., step:, :]))
    scale = whole.shape[-2] // height
    expected = whole[..., (step + rows) * scale : (height - rows) * scale, :]
    found = moved[..., rows * scale : (height - step - rows) * scale, :]
    return bool((found - expected).abs().max() <= SAME * whole.abs().max())


class _PeakMemory(TorchDispatchMode):
    """Bytes of all tensors made within the block that lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._alive: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self._alive = {key: (ref, size) for key, (ref, size) in self._alive.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return result
