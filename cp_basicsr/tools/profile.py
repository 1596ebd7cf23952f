"""Show where a network's time goes: each layer at each level, on the CPU.

    cp-profile --model net_g_latest.pth --size 256x256
    cp-profile --model srvgg_small_x2 --input photo.jpg --budget 0.5
    cp-profile -opt options/test_cp_swinir.yml --level 1 --json profile.json

Times are measured inside real forward passes; a layer's includes what the
engine fuses with it (column "with"). The column "path" names what computed it:
avx512 or avx2 (compiled code; "winograd" multiplies transformed weights, which
takes equally long at every level), reference (masked weights in PyTorch) or
pytorch; a letter tells why nothing faster did. With --input a picture also runs
along its level map, classifier and policy included.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from cp_basicsr.archs.batches import padded
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.launch import check_option_file
from cp_basicsr.loading import load_network
from cp_basicsr.models.checkpoints import read_state_dict
from cp_basicsr.options import OptionError, check_number, read_block
from cp_basicsr.pixels import luma, to_planes
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.routing.policy import BudgetError
from cp_basicsr.sparsity import PatternError

from .arguments import read_count
from .report import machine, make_folder_of, write_text
from .restoring_files.reading import ReadError, read_picture

DEFAULT_SIZE = '128x128'
REPEATS = 10


def network_of(option_file: Path) -> tuple[ClassPruningNet, str]:
    """The network of an option file, in eval mode, and where its weights are from.

    Raises:
        OptionError: it has no ClassPruningNet.
        CheckpointError: the checkpoint that it names does not fit.
    """
    check_option_file(option_file)
    opt = yaml.safe_load(option_file.read_text(encoding='utf-8'))
    form = ' of keys, for example {type: ClassPruningNet}'
    options = read_block(opt.get('network_g') or {}, f'{option_file}: network_g', form)
    if options.get('type') != 'ClassPruningNet':
        raise OptionError(
            f'{option_file}: network_g.type is {options.get("type")!r}; only a ClassPruningNet has levels to profile.'
        )
    net = ClassPruningNet(**{key: value for key, value in options.items() if key != 'type'})
    paths = opt.get('path') or {}
    checkpoint = paths.get('pretrain_network_g')
    if checkpoint is None:
        return net.eval(), 'random weights'
    path = Path(checkpoint).expanduser()
    net.load_state_dict(read_state_dict(path, paths.get('param_key_g', 'params')), paths.get('strict_load_g', True))
    return net.eval(), str(path)


def input_of(net: ClassPruningNet, size: str, frames: int | None) -> Tensor:
    """One input in [0, 1].

    Args:
        net: which has a say about its channels and sizes.
        size: such as ``256x192``, height first, in lq pixels.
        frames: of a video; None for an image.

    Raises:
        OptionError: the size cannot be read, or the network does not take it.
    """
    found = re.fullmatch(r'(\d+)x(\d+)', size)
    if not found or '0' in (found[1], found[2]):
        raise OptionError(f'--size is {size!r}; write height and width in lq pixels, for example {DEFAULT_SIZE}.')
    height, width = int(found[1]), int(found[2])
    if height % net.multiple or width % net.multiple:
        nearest = 'x'.join(str(-(-side // net.multiple) * net.multiple) for side in (height, width))
        raise OptionError(
            f'--size is {size}, but {net.base_options["type"]} takes multiples of {net.multiple} pixels: {nearest}.'
        )
    if net.scale is not None and frames is not None:
        raise OptionError(f'--frames is {frames}, but {net.base_options["type"]} restores single images; leave it out.')
    if net.scale is None and frames is None:
        raise OptionError(
            f'{net.base_options["type"]} does not restore single images of any size: give --frames N for a video, or '
            'the one --size it was built for.'
        )
    shape = (net.in_channels, height, width) if frames is None else (frames, net.in_channels, height, width)
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))


def picture_of(net: ClassPruningNet, path: Path) -> Tensor:
    """A picture as the network takes it: ``[1, C, H, W]`` in [0, 1], without alpha, padded where it has to be.

    Raises:
        OptionError: there is none, or the network takes no single picture.
    """
    if net.scale is None:
        raise OptionError(f'--input is {path}, but {net.base_options["type"]} restores no single pictures.')
    try:
        colour = to_planes(read_picture(path).pixels).colour
    except ReadError as error:
        raise OptionError(f'--input: {path} {error}.') from error
    colour = luma(colour) if net.in_channels == 1 else colour.expand(-1, net.in_channels, -1, -1)
    return padded(colour, net.multiple)


def choice_of(net: ClassPruningNet, budget: float | None) -> RoutingChoice:
    """How a picture is routed: as trained, at ``budget`` if there is one."""
    trained = net.calibration.trained_choice()
    return trained if budget is None else replace(trained, budget=check_number(budget, '--budget', 0, 2))


def _levels(text: str, net: ClassPruningNet) -> list[int]:
    if text == 'all':
        return list(range(len(net.levels)))
    if not re.fullmatch(r'-?\d+', text):
        raise OptionError(
            f'--level is {text!r}; write all, or the index of a level: 0 is the sparsest, {net.labels[0]}.'
        )
    return [net.pattern.index(int(text))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--model', metavar='CKPT', help='checkpoint that training wrote, or the name of a shipped one')
    source.add_argument('-opt', type=Path, metavar='FILE', help='option file; without a checkpoint: random weights')
    parser.add_argument('--input', type=Path, metavar='PICTURE', help='run it, and route it')
    parser.add_argument(
        '--budget', type=float, metavar='B', help='of --input, share of the dense MACs; default: trained'
    )
    parser.add_argument('--size', metavar='HxW', help=f'random pixels instead (default: {DEFAULT_SIZE})')
    parser.add_argument('--frames', type=read_count, metavar='N', help='for video networks')
    parser.add_argument('--level', default='all', metavar='L', help='all (default), or the index of one; 0: sparsest')
    parser.add_argument('--repeats', type=int, default=REPEATS, metavar='N', help=f'passes (default: {REPEATS})')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write everything there')
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f'--repeats is {options.repeats}; at least 1 is needed')
    if options.budget is not None and options.input is None:
        parser.error('--budget needs --input PICTURE: random pixels are all alike difficult')
    if options.input is not None and (options.size is not None or options.frames is not None):
        parser.error('--input has a size of its own: leave --size and --frames out')
    try:
        from .profiling.measuring import profile
        from .profiling.table import as_text
    except (ImportError, OSError) as error:  # OSError: its library is there and does not load
        raise SystemExit(f'cp-profile looks into compiled code, for which it needs llvmlite ({error}).') from error
    try:
        if options.json is not None:
            make_folder_of(options.json)
        if options.opt is None:
            net, source = load_network(options.model), options.model
        else:
            net, source = network_of(options.opt)
        if options.input is None:
            x, choice = input_of(net, options.size or DEFAULT_SIZE, options.frames), None
        else:
            x, choice = picture_of(net, options.input), choice_of(net, options.budget)
        result = profile(net, x, _levels(options.level, net), options.repeats, choice)
    except (BudgetError, CheckpointError, OptionError, PatternError) as error:
        raise SystemExit(str(error)) from error
    head = f'{result.architecture} ({source}), {"x".join(map(str, x.shape))}, median of {options.repeats} passes'
    sys.stdout.write(f'{head}\n{machine()}\n\n{as_text(result)}\n')
    if options.json is not None:
        write_text(options.json, json.dumps({'machine': machine(), 'source': source, **asdict(result)}, indent=1))


if __name__ == '__main__':
    main()
