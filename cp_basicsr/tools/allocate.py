"""N of each layer for a training option file: levels that cost what they did and lie nearer to the dense network.

    python -m cp_basicsr.tools.allocate -opt options/train_cp_srvgg_x2.yml

Measures on the calibration images what pruning each layer alone costs, in the network that path.pretrain_network_g
names: a plain checkpoint of the base network, whose levels are started here, or one that has levels. Prints the block
`layer_levels` for network_g.sparsity. Training starts from the plain checkpoint again: levels do not outlive a change
of their N.
"""

from __future__ import annotations

import argparse
import os.path as osp
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cp_basicsr import autoload
from cp_basicsr.options import OptionError

if TYPE_CHECKING:
    from cp_basicsr.archs.class_pruning_arch import ClassPruningNet


def layer_levels(opt: Mapping[str, Any], where: str) -> dict[str, list[int]]:
    """The block for a training option file.

    Args:
        opt: the file's content.
        where: the file, for messages.

    Raises:
        CheckpointError: the checkpoint is missing or does not fit.
        OptionError: it is no ClassPruning option file, or has no checkpoint or calibration images.
    """
    from cp_basicsr.models.calibrating import HeldOutImages
    from cp_basicsr.models.starting_levels import middles, reconstruct
    from cp_basicsr.models.training_options import TrainingOptions
    from cp_basicsr.sparsity import allocate, layer_distances

    if not (opt.get('path') or {}).get('pretrain_network_g'):
        raise OptionError(f'{where}: path.pretrain_network_g is missing; name a checkpoint of the base network there.')
    options = TrainingOptions.read(opt.get('train') or {})
    if not options.calibration:
        raise OptionError(f'{where}: train.calibration.dataset is missing; name held-out images there.')
    net = _network(opt, where)
    patches = HeldOutImages(options, opt.get('scale', 1), net).patches
    reconstruct([net], patches, dist=False)
    inputs = middles(net, patches)
    return allocate(net.base, net.pattern, net.macs(inputs[0].shape[1:]), layer_distances(net.base, inputs))


def _network(opt: Mapping[str, Any], where: str) -> ClassPruningNet:
    from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
    from cp_basicsr.models.checkpoints import read_state_dict

    blocks = dict(opt.get('network_g') or {})
    if blocks.pop('type', None) != 'ClassPruningNet':
        raise OptionError(f'{where}: network_g.type is not ClassPruningNet; only that has levels.')
    sparsity = {key: value for key, value in (blocks.pop('sparsity', None) or {}).items() if key != 'layer_levels'}
    net = ClassPruningNet(sparsity=sparsity, **blocks)
    path = opt['path']
    key = path.get('param_key_g', 'params')
    net.load_state_dict(read_state_dict(osp.expanduser(path['pretrain_network_g']), key))
    return net.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', type=Path, required=True, metavar='FILE', help='BasicSR training option file')
    file = parser.parse_args(arguments).opt
    autoload.activate()
    from cp_basicsr.archs.state import CheckpointError
    from cp_basicsr.data.errors import DataError
    from cp_basicsr.launch import check_option_file
    from cp_basicsr.sparsity import PatternError

    check_option_file(file)
    try:
        found = layer_levels(yaml.safe_load(file.read_text(encoding='utf-8')), str(file))
    except (CheckpointError, DataError, OptionError, PatternError) as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write('layer_levels:\n' + ''.join(f'  {name}: {levels}\n' for name, levels in found.items()))


if __name__ == '__main__':
    main()
