"""Which architecture of BasicSR supports what, found by trying: a Markdown table for README.md.

    python -m cp_basicsr.tools.support_table                     (two minutes)
    python -m cp_basicsr.tools.support_table --write README.md   (between the two comments that mark its place)

Builds the smallest network of each registered architecture that can be a base, converts it, routes it by tile, runs it,
exports it and loads the export elsewhere. No cell is written by hand. EDVR, BasicVSR++ and IconVSR need a torchvision
that was built for the torch that is installed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cp_basicsr.archs.adapters import REFUSED
from cp_basicsr.archs.building import build_base, registered_names
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.examples import EXAMPLES
from cp_basicsr.archs.restoring import restore_by_map
from cp_basicsr.options import OptionError
from cp_basicsr.sparsity import Route, UniformRoute, UnplacedLayerError

from .export import FORMATS, export
from .exporting.errors import ExportError, needed
from .report import write_text

BEGIN, END = '<!-- support table: python -m cp_basicsr.tools.support_table --write -->', '<!-- end of support table -->'
SPARSITY = {'m': 4, 'levels': [1, 2, 4]}
CLASSIFIER = {'type': 'DifficultyClassifier', 'num_feat': 4}
TILE = 4  # lq pixels; the examples are small
SAME = 1e-4  # largest difference between spandrel's output and ours


@dataclass(frozen=True)
class Support:
    """What one architecture supports: its row, column by column."""

    architecture: str
    convert: str
    level_map: str = ''
    engine: str = ''
    export: str = ''
    gui: str = ''


HEAD = Support('architecture', 'convert: prunable layers', 'level map', 'engine', 'export', 'GUI (spandrel)')


def support_of(name: str) -> Support:
    """Try everything with the example of an architecture."""
    if name not in EXAMPLES:
        return Support(name, 'not tried: it has no example in cp_basicsr.archs.examples')
    example = EXAMPLES[name]
    torch.manual_seed(0)
    try:
        net = ClassPruningNet(dict(example.base), SPARSITY, dict(CLASSIFIER)).eval()
    except OptionError as error:
        return Support(name, f'not on this machine: {error}')
    x = torch.rand(1, *example.shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        return Support(
            name,
            _convert(net),
            _level_map(net, x),
            _engine(net, x),
            _export(net, Path(folder)),
            _gui(net, Path(folder)),
        )


def _convert(net: ClassPruningNet) -> str:
    net.load_state_dict(build_base(net.base_options).state_dict(), strict=True)
    prunable, dense = len(net.conversion.prunable), net.conversion.left_dense
    whole = [name for name in dense if not any(name.startswith(f'{other}.') for other in dense)]
    return f'{prunable} of {prunable + len(whole)}'


@torch.inference_mode()
def _level_map(net: ClassPruningNet, x: Tensor) -> str:
    """Whether tiles at different levels can lie side by side on one feature map."""
    if x.dim() == 5:
        return 'whole videos'
    rows, columns = (-(-side // TILE) for side in x.shape[-2:])
    levels = (torch.arange(rows)[:, None] + torch.arange(columns)) % len(net.levels)
    try:
        restore_by_map(net, x, levels[None], TILE)
    except UnplacedLayerError as error:
        return f'whole images, or cut tiles: {error}'
    return 'by tile'


@torch.inference_mode()
def _engine(net: ClassPruningNet, x: Tensor) -> str:
    routes: list[Route] = []

    def note(route: Route) -> Route:
        routes.append(route)
        return route

    net.engine.run(net.base, x, UniformRoute(0), observe=note)
    if net.engine.refused:
        return f'none: {net.engine.refused}'
    left, total = routes[0].compiled.reference, len(net.conversion.prunable)
    text = 'all layers' if not left else f'{total - len(left)} of {total} ({"; ".join(sorted(set(left.values())))})'
    # Networks of several frames are not traced.
    return f'{text}, unfused' if net.engine.untraced or x.dim() == 5 else text


def _export(net: ClassPruningNet, folder: Path) -> str:
    """Formats that could be written; each is checked when it is."""
    done = []
    for kind in FORMATS:
        try:
            list(export(net, folder, 'net', [0], [kind]))
        except ExportError:
            continue
        done.append(kind)
    return ', '.join(done) or 'none'


@torch.inference_mode()
def _gui(net: ClassPruningNet, folder: Path) -> str:
    """Whether spandrel loads the checkpoint that ``_export`` wrote, and computes what the level does."""
    spandrel = needed('spandrel', 'The column "GUI"')
    try:
        descriptor = spandrel.ModelLoader().load_from_file(folder / f'net_{net.levels[0]}of{net.pattern.m}.pth').eval()
    except spandrel.UnsupportedModelError:
        return 'no'
    except RuntimeError as error:
        return f'no: {" ".join(str(error).split())[:80]}'
    side = 2 * net.multiple * -(-8 // net.multiple)
    x = torch.rand(1, net.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    same = (descriptor.model(x) - net.run_level(x, 0)).abs().max() <= SAME
    return f'yes ({descriptor.architecture.name})' if same else 'no: it loads, but computes something else'


def as_markdown(rows: Sequence[Support]) -> str:
    """The table, and below it what cannot be a base."""
    lines = [astuple(HEAD), ('---',) * len(astuple(HEAD)), *map(astuple, rows)]
    table = '\n'.join(f'| {" | ".join(cell.replace("|", "/") for cell in line)} |' for line in lines)
    reasons: dict[str, list[str]] = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(name)
    refused = '; '.join(f'{", ".join(names)} ({reason})' for reason, names in reasons.items())
    return f'{table}\n\nNo bases: {refused}.'


def insert(text: str, table: str, where: str) -> str:
    """``text`` with ``table`` between the two comments.

    Raises:
        OptionError: a comment is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OptionError(f'{where} has no place for the table: put these lines where it belongs.\n{BEGIN}\n{END}')
    return f'{before}{BEGIN}\n\n{table}\n\n{END}{after}'


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', type=Path, metavar='FILE', help='write the table there, between its two comments')
    options = parser.parse_args(arguments)
    names = sorted(registered_names().keys() - REFUSED.keys(), key=str.lower)
    try:
        if options.write is not None:  # before minutes are spent
            insert(options.write.read_text(encoding='utf-8'), '', str(options.write))
        with redirect_stdout(sys.stderr):  # some architectures print when they are built
            table = as_markdown([support_of(name) for name in tqdm(names, desc='architectures', leave=False)])
        if options.write is not None:
            write_text(options.write, insert(options.write.read_text(encoding='utf-8'), table, str(options.write)))
    except (OptionError, ExportError, OSError) as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(f'{table}\n')


if __name__ == '__main__':
    main()
