"""Write each level of a network as a plain network that other programs load, or prove the pattern of such a file.

    cp-export --model net_g_latest.pth -o exported --format pth onnx
    cp-export --verify exported/net_g_latest_2of4.onnx

pth and safetensors have the base architecture's own names and load in unmodified BasicSR and, where they know the
architecture, in chaiNNer and other programs built on spandrel. ONNX files (the classifier gets one too) and
torch.export programs (pt2) take images of any height and width, and are kept only if they compute what PyTorch does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.archs.tracing import make_traceable
from cp_basicsr.loading import find_checkpoint, load_network
from cp_basicsr.sparsity import PatternError

from .arguments import read_count
from .exporting.description import KEY, Description
from .exporting.errors import ExportError
from .exporting.files import CHECKPOINT_WRITERS
from .exporting.proof import prove
from .exporting.traced import Traced, check_onnx

FORMATS = (*CHECKPOINT_WRITERS, 'onnx', 'pt2')
DEFAULT_FORMATS = ('pth', 'safetensors')
RESTORED, PREDICTED = 'output', 'log_probs'  # names of the ONNX outputs


def export(
    net: ClassPruningNet, folder: Path, stem: str, levels: Sequence[int], formats: Sequence[str]
) -> Iterator[tuple[Path, str]]:
    """Write levels, and with ONNX the classifier.

    Args:
        net: the network, on the CPU.
        folder: is made if it is missing.
        stem: begins the name of each file; ``_2of4`` or ``_classifier`` and the ending follow.
        levels: level indices.
        formats: some of ``FORMATS``.

    Yields:
        Each file when it is whole, and what was found when it was checked.

    Raises:
        ExportError: a package is missing, or a network cannot be traced.
        PatternError: there is no such level.
    """
    indices = sorted({net.pattern.index(level) for level in levels})
    traces = [kind for kind in formats if kind not in CHECKPOINT_WRITERS]
    if 'onnx' in formats:
        check_onnx()
    if traces and net.scale is None:
        raise ExportError(
            f'{net.base_options["type"]} takes several frames or one size only: {" and ".join(traces)} '
            'cannot take images of any height and width. Export it as pth or safetensors.'
        )
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        description = Description.of(net, index)
        name = f'{stem}_{net.levels[index]}of{net.pattern.m}'
        plain = net.bake(index)
        for kind in formats:
            if kind in CHECKPOINT_WRITERS:
                path = folder / f'{name}.{kind}'
                CHECKPOINT_WRITERS[kind](path, plain, description)
                yield path, prove(path).as_text()
        if traces:
            yield from _write_traced(folder / name, make_traceable(plain), description, traces)
    if 'onnx' in formats:
        yield _write_classifier(net, folder / f'{stem}_classifier.onnx')


def _write_traced(
    path: Path, plain: nn.Module, description: Description, formats: Sequence[str]
) -> Iterator[tuple[Path, str]]:
    traced = Traced.of(plain, description.in_channels, description.multiple)
    metadata = {KEY: description.as_text()}
    for kind in formats:
        target = path.with_name(f'{path.name}.{kind}')
        if kind == 'onnx':
            difference = traced.write_onnx(target, RESTORED, metadata)
        else:
            difference = traced.write_pt2(target, metadata)
        yield target, f'{_agreement(difference)}\n{prove(target).as_text()}'


class _Predicting(nn.Module):
    """The classifier with its tile: log-probabilities of the levels ``[B, L, rows, columns]``."""

    def __init__(self, classifier: nn.Module, tile: int | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.tile = tile

    def forward(self, lq: Tensor) -> Tensor:
        return self.classifier(lq, self.tile).log_softmax(dim=1)


def _write_classifier(net: ClassPruningNet, path: Path) -> tuple[Path, str]:
    tile = net.calibration.trained_choice().tile if net.classifier.by_tile else None
    traced = Traced.of(_Predicting(net.classifier, tile).eval(), net.in_channels)
    metadata = {'levels': ' '.join(net.labels), 'tile': str(tile or 'whole image')}
    difference = traced.write_onnx(path, PREDICTED, metadata)
    tiles = f'one prediction for each tile of {tile} lq pixels' if tile else 'one prediction for each image'
    return path, f'{_agreement(difference)}\nLevels {", ".join(net.labels)}, {tiles}.'


def _agreement(difference: float) -> str:
    return f'Computes what PyTorch does at two sizes: largest difference {difference:.1e}.'


def _levels(texts: Sequence[str], net: ClassPruningNet) -> list[int]:
    """Level indices of a command line.

    Raises:
        ExportError: a word is neither 'all' nor a whole number.
    """
    if list(texts) == ['all']:
        return list(range(len(net.levels)))
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise ExportError(
            f'--level is {" ".join(texts)}; write all, or level indices from 0 (sparsest, {net.labels[0]}) to '
            f'{len(net.levels) - 1} (densest).'
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', metavar='CKPT', help='checkpoint that training wrote, or the name of a shipped one')
    parser.add_argument('-o', '--out', type=Path, metavar='FOLDER', help='where the files go')
    parser.add_argument(
        '--format', nargs='+', choices=FORMATS, default=DEFAULT_FORMATS, metavar='F', help=f'of {" ".join(FORMATS)}'
    )
    parser.add_argument('--level', nargs='+', default=['all'], metavar='L', help='all, or indices: 0 is the sparsest')
    parser.add_argument('--param-key', default='params_ema', help='weights to take: params_ema (default) or params')
    parser.add_argument('--verify', type=Path, metavar='FILE', help='prove that each group of each layer holds N:M')
    parser.add_argument('--n', type=read_count, help='N, for files that do not describe themselves')
    parser.add_argument('--m', type=read_count, help='M, for files that do not describe themselves')
    parser.add_argument('--exclude', nargs='+', default=[], metavar='P', help='patterns of layers left dense in them')
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.verify is None) == (options.model is None):
        parser.error('give --model CKPT with -o FOLDER to export, or --verify FILE')
    if options.model is not None and options.out is None:
        parser.error('-o FOLDER is missing: where should the files go?')
    try:
        if options.verify is not None:
            sys.stdout.write(f'{prove(options.verify, options.m, options.n, options.exclude).as_text()}\n')
            return
        net = load_network(options.model, options.param_key)
        stem = find_checkpoint(options.model).stem
        for path, found in export(net, options.out, stem, _levels(options.level, net), options.format):
            text = found.replace('\n', '\n    ')
            sys.stdout.write(f'{path}  {path.stat().st_size / 1024:,.0f} KiB\n    {text}\n')
            sys.stdout.flush()
    except (ExportError, CheckpointError, OSError, PatternError) as error:
        raise SystemExit(str(error)) from error


if __name__ == '__main__':
    main()
