"""Time our network against the strongest dense rivals here, on real image sizes.

    cp-benchmark --json results.json --chart results.png
    cp-benchmark --scaling --networks edsr --chart scaling.png
    cp-benchmark --overhead
    cp-benchmark --limits --precisions fp32 bf16

Rivals (pip install 'cp-basicsr[benchmark]') run the plain dense network; none
of them would skip zeros. What is missing or fails is skipped by name. Ours runs
at each level of m: 4, [1, 2, 4] and along random maps of tiles of 16 pixels,
classifier included. All outputs are checked. Contenders run in turn; medians
over the rounds count, and samples that others disturbed are taken again.
MACs ratio = dense MACs / MACs; time ratio = seconds of the fastest float32
rival / seconds; efficiency = time ratio / MACs ratio.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger

from cp_basicsr.engine.host import EngineUnavailableError, chosen_set
from cp_basicsr.options import OptionError, check_choice
from cp_basicsr.precision import DEFAULT_PRECISION
from cp_basicsr.tools.arguments import read_count
from cp_basicsr.tools.benchmarking import chart, results, scaling
from cp_basicsr.tools.benchmarking.contenders import checked, our_contenders, result_of, rival_contenders
from cp_basicsr.tools.benchmarking.environment import environment
from cp_basicsr.tools.benchmarking.networks import LQ_720P, NETWORKS, Network, chosen
from cp_basicsr.tools.benchmarking.overhead import overhead
from cp_basicsr.tools.benchmarking.results import Result
from cp_basicsr.tools.benchmarking.rivals import RIVALS
from cp_basicsr.tools.benchmarking.timing import Timer, log_load
from cp_basicsr.tools.report import make_folder_of, write_text

ROUNDS = 9
QUICK_ROUNDS = 3
PATIENCE = 60.0
QUICK_SIZE = (64, 64)
QUICK_MEGAPIXELS = (0.1, 0.25, 0.5)
OURS = (DEFAULT_PRECISION, 'bf16')  # precisions
DEFAULT_NETWORK = 'edsr'  # of --scaling and --overhead
LAYER = 'layer'  # of --limits


def compare(
    network: Network,
    size: tuple[int, int],
    timer: Timer,
    rivals: Sequence[str],
    precisions: Sequence[str] = (DEFAULT_PRECISION,),
) -> list[Result]:
    """Every contender on one input; a rival that cannot run, or computes something else, is logged and left out.

    Args:
        network: what is timed.
        size: height and width of the input, pixels; rounded up to what the network takes.
        timer: how to time.
        rivals: keys of the runtimes.
        precisions: that our network computes in.
    """
    net = network.build()
    x = network.sample(size, net.multiple)
    size = tuple(x.shape[-2:])
    get_root_logger().info(f'{network.title}, input {size[1]} x {size[0]}: preparing.')
    ours = (our_contenders(network, net, x, precision) for precision in precisions)
    contenders = dict(checked(chain(rival_contenders(net, x, rivals), *ours)))
    seconds = timer.interleaved({each.name: each.run for each in contenders})
    dense = net.macs(x.shape[1:]).dense
    return [result_of(network, size, each, dense, seconds[each.name], error) for each, error in contenders.items()]


def _tables(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Compare, chart; the text and what goes to JSON."""
    tables: list[list[Result]] = []
    parts: list[str] = []
    for network in options.networks:
        for size in options.sizes or network.sizes:
            tables.append(compare(network, size, options.timer, options.rivals, options.precisions))
            height, width = tables[-1][0].size
            heading = f'**{network.title}, input {width} x {height}, output '
            heading += f'{width * network.scale} x {height * network.scale}**'
            parts.append(f'{heading}\n\n{results.as_markdown(tables[-1])}')
    if options.chart:
        chart.bars(tables, options.chart, environment())
    return '\n\n'.join(parts), {'results': [results.as_record(row, table) for table in tables for row in table]}


def _one_network(options: argparse.Namespace, mode: str) -> tuple[Network, tuple[int, int]]:
    """The network and input of a mode that measures one.

    Raises:
        OptionError: the command line asks for what the mode does not measure.
    """
    for name, given in (('networks', options.networks), ('sizes', options.sizes or [])):
        if len(given) > 1:
            raise OptionError(f'{mode} measures one of --{name}; {len(given)} are given.')
    if options.precisions != [DEFAULT_PRECISION]:
        raise OptionError(f'{mode} measures {DEFAULT_PRECISION}: leave --precisions out.')
    return options.networks[0], (options.sizes or [LQ_720P])[0]


def _scaling(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    network, size = _one_network(options, '--scaling')
    curves = scaling.scaling(network, options.timer, options.megapixels, size)
    title = f'{network.title}, N:{scaling.M}'
    if options.chart:
        chart.curves(curves, options.chart, f'{title}. {environment()}')
    text = f'**{title}**, milliseconds\n\n{scaling.as_markdown(curves)}'
    return text, {'scaling': {'network': network.title, 'curves': curves}}


def _overhead(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if options.chart:
        raise OptionError('--overhead draws nothing: leave --chart out.')
    network, size = _one_network(options, '--overhead')
    measured = overhead(network, size, options.timer)
    text = f'**Routing of {network.title}, input {measured.size[1]} x {measured.size[0]}**\n\n{measured.as_markdown()}'
    shares = {'routing_share': measured.routing_share, 'map_share': measured.map_share}
    return text, {'overhead': {'network': network.title, **vars(measured), **shares}}


def _limits(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Limits of the machine and of the single layer.

    Raises:
        OptionError: no compiled code runs here, or an option does not fit.
    """
    if [network.key for network in options.networks] != [LAYER]:
        raise OptionError(f'--limits measures one convolution: leave --networks out, or write {LAYER}.')
    if options.chart:
        raise OptionError('--limits draws nothing: leave --chart out.')
    try:
        for precision in options.precisions:
            chosen_set(precision)
    except EngineUnavailableError as error:
        raise OptionError(f'--limits measures compiled code, and there is none: {error}.') from error
    from cp_basicsr.tools.benchmarking import limits, limits_tables  # they need llvmlite, as compiled code does

    (network,) = options.networks
    parts, records = [], []
    for size in options.sizes or network.sizes:
        measured = limits.limits(network, size, options.timer, options.rivals, options.precisions)
        parts.append(f'**{network.title}, input {size[1]} x {size[0]}**\n\n{limits_tables.as_markdown(measured)}')
        records.append(limits_tables.as_record(measured))
    return '\n\n'.join(parts), {'limits': records}


@torch.inference_mode()
def run(options: argparse.Namespace) -> str:
    """Measure as the command line says, write the files, return the text."""
    if options.chart:
        chart.check_format(options.chart)
    for path in filter(None, (options.chart, options.json, options.out)):
        make_folder_of(path)
    if options.threads:
        torch.set_num_threads(options.threads)
    load = log_load()
    text, content = options.measure(options)
    text = f'{environment()}\n\n{text}\n'
    if options.json:
        write_text(options.json, json.dumps({'machine': environment(), 'load': load, **content}, indent=1))
    if options.out:
        write_text(options.out, text)
    return text


def read_size(text: str) -> tuple[int, int]:
    """Height and width from ``180x320``.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'{text!r} is no size; write height x width in pixels, for example 180x320')
    return int(height), int(width)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        OptionError: a network or rival is unknown.
    """
    parser = argparse.ArgumentParser(
        prog='cp-benchmark', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--networks', nargs='+', metavar='N', help=f'of {" ".join(NETWORKS)} (all)')
    add('--sizes', nargs='+', type=read_size, metavar='HxW', help='lq pixels (default: 256x256 180x320)')
    add('--rivals', nargs='*', metavar='N', help=f'of {" ".join(rival.key for rival in RIVALS)} (all)')
    add('--precisions', nargs='+', choices=OURS, default=[DEFAULT_PRECISION], metavar='P', help='ours: fp32 bf16')
    add('--rounds', type=read_count, metavar='N', help=f'of timing (default: {ROUNDS})')
    add('--patience', type=float, default=PATIENCE, metavar='S', help=f'seconds for disturbed samples ({PATIENCE:g})')
    add('--threads', type=read_count, metavar='N', help="of all (default: PyTorch's choice)")
    add('--quick', action='store_true', help=f'{QUICK_ROUNDS} rounds, small inputs, no patience')
    add('--json', type=Path, metavar='FILE', help='write every figure there')
    add('--out', type=Path, metavar='FILE', help='write the Markdown there, too')
    add('--chart', type=Path, metavar='FILE', help='draw it, PNG or SVG')
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        '--scaling',
        dest='measure',
        action='store_const',
        const=_scaling,
        default=_tables,
        help='cost against size, density and threads',
    )
    modes.add_argument(
        '--overhead',
        dest='measure',
        action='store_const',
        const=_overhead,
        help='what routing costs beside the layers',
    )
    modes.add_argument(
        '--limits',
        dest='measure',
        action='store_const',
        const=_limits,
        help='what bounds one layer: peaks, stages, products',
    )
    options = parser.parse_args(arguments)
    everything = {_tables: list(NETWORKS), _limits: [LAYER]}.get(options.measure, [DEFAULT_NETWORK])
    options.networks = chosen(options.networks or everything)
    keys = [rival.key for rival in RIVALS]
    options.rivals = keys if options.rivals is None else [check_choice(k, keys, '--rivals') for k in options.rivals]
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.timer = Timer(rounds, 0.0 if options.quick else options.patience)
    options.megapixels = QUICK_MEGAPIXELS if options.quick else scaling.MEGAPIXELS
    if options.quick:
        options.sizes = options.sizes or [QUICK_SIZE]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    get_root_logger().setLevel(logging.INFO)  # BasicSR does so only for a logger with a file
    try:
        text = run(parse(arguments))
    except OptionError as error:
        raise SystemExit(f'benchmark: {error}') from error
    sys.stdout.write(text)


if __name__ == '__main__':
    main()
