"""Write weights of ECBSR or DnCNN as a SRVGGNetCompact, which computes the same and can be pruned in all layers.

    python -m cp_basicsr.tools.as_srvgg ECBSR_M6C40_x2.pth experiments/pretrained_models/SRVGG_from_ECBSR_M6C40_x2.pth

Takes BasicSR's ECBSR (whose blocks merge into one convolution each; `with_idt: false`) and KAIR's DnCNN without
normalization (`act_mode='R'`: dncnn_15.pth, dncnn_25.pth, dncnn_50.pth, dncnn_color_blind.pth). Prints the block
`network_g.base` for an option file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from basicsr.archs.ecbsr_arch import ECBSR
from torch import Tensor

from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.models.checkpoints import read_state_dict, write_atomically


def as_srvgg(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same network in BasicSR's SRVGGNetCompact.

    Args:
        weights: state dict of an ECBSR or a DnCNN.

    Returns:
        Options of the SRVGGNetCompact, ``type`` among them, and its state dict.

    Raises:
        CheckpointError: it is neither, or one that SRVGGNetCompact cannot compute.
    """
    if 'backbone.0.conv3x3.weight' in weights:
        return _from_ecbsr(weights)
    if 'model.0.weight' in weights:
        return _from_dncnn(weights)
    raise CheckpointError(
        f'These are weights of neither ECBSR (backbone.0.conv3x3.weight) nor DnCNN (model.0.weight); they begin with '
        f'{next(iter(weights))}.'
    )


@torch.no_grad()
def _from_ecbsr(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Each block is one convolution when its branches are merged, as its authors do (ACM Multimedia 2021)."""
    width, colours = weights['backbone.0.conv3x3.weight'].shape[:2]
    last = max(int(name.split('.')[1]) for name in weights)
    scale = round((len(weights[f'backbone.{last}.conv3x3.weight']) / colours) ** 0.5)
    activation = 'prelu' if 'backbone.0.act.weight' in weights else 'relu'
    net = ECBSR(colours, colours, last - 1, width, with_idt=False, act_type=activation, scale=scale)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"These weights do not fit BasicSR's ECBSR: {error}") from error
    layers = [block.rep_params() for block in net.backbone]
    slopes = [block.act.weight for block in net.backbone if block.act_type == 'prelu']
    return _options(colours, width, last - 1, scale, activation), _body(layers, slopes)


def _from_dncnn(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """DnCNN predicts the noise, SRVGGNetCompact what is to be added: the last layer with its sign turned."""
    count = len(weights) // 2
    expected = [f'model.{2 * index}.{part}' for index in range(count) for part in ('weight', 'bias')]
    if count < 2 or sorted(weights) != sorted(expected):
        others = sorted(set(weights) - set(expected))
        raise CheckpointError(
            f'This DnCNN is not convolutions with ReLU between them: it has {", ".join(others[:4]) or "one layer"}. '
            'Merge its normalization into its convolutions first.'
        )
    layers = [(weights[f'model.{2 * index}.weight'], weights[f'model.{2 * index}.bias']) for index in range(count)]
    width, colours = layers[0][0].shape[:2]
    if len(layers[-1][0]) != colours:
        raise CheckpointError(
            f'This network takes {colours} channels and gives {len(layers[-1][0])}: FDnCNN, which takes a map of the '
            'noise, is no DnCNN.'
        )
    layers[-1] = (-layers[-1][0], -layers[-1][1])
    return _options(colours, width, count - 2, 1, 'relu'), _body(layers, [])


def _options(colours: int, width: int, convolutions: int, scale: int, activation: str) -> dict[str, Any]:
    return {
        'type': 'SRVGGNetCompact',
        'num_in_ch': colours,
        'num_out_ch': colours,
        'num_feat': width,
        'num_conv': convolutions,
        'upscale': scale,
        'act_type': activation,
    }


def _body(layers: Sequence[tuple[Tensor, Tensor]], slopes: Sequence[Tensor]) -> dict[str, Tensor]:
    """SRVGGNetCompact's ``body``: convolutions at even places, activations at odd ones."""
    state = {}
    for index, (weight, bias) in enumerate(layers):
        state |= {f'body.{2 * index}.weight': weight.clone(), f'body.{2 * index}.bias': bias.clone()}
    state |= {f'body.{2 * index + 1}.weight': slope.clone() for index, slope in enumerate(slopes)}
    return state


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='checkpoint of ECBSR or DnCNN')
    parser.add_argument('output', type=Path, help='checkpoint of SRVGGNetCompact to write')
    options = parser.parse_args(arguments)
    try:
        base, state = as_srvgg(read_state_dict(options.source))
    except CheckpointError as error:
        raise SystemExit(f'{options.source}: {error}') from error
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically({'params': state}, options.output)
    sys.stdout.write('base:\n' + ''.join(f'  {name}: {value}\n' for name, value in base.items()))


if __name__ == '__main__':
    main()
