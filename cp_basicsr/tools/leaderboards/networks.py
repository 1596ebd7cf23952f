"""A network and its test sets, from a BasicSR test option file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import path as osp
from pathlib import Path
from typing import Any

import torch
import yaml

from cp_basicsr.launch import check_option_file
from cp_basicsr.options import OptionError


@dataclass(frozen=True)
class OptionFile:
    """A test option file.

    Attributes:
        label: names it in tables.
        opt: as BasicSR's test command sees it, without its command line or result folders.
        fingerprint: changes whenever the network, its checkpoint, the data or the way of routing does.
    """

    label: str
    opt: dict[str, Any]
    fingerprint: str


def read_option_files(paths: Sequence[Path]) -> list[OptionFile]:
    """Read option files; those of one name are told apart by their paths.

    Raises:
        OptionError: one of them has no ClassPruningModel or no data.
        SystemExit: one of them cannot be read or is no YAML mapping.
    """
    stems = [path.stem for path in paths]
    files = []
    for path in paths:
        check_option_file(path)
        opt = read_test_options(path)
        label = path.stem if stems.count(path.stem) == 1 else str(path.with_suffix(''))
        files.append(OptionFile(label, opt, _fingerprint(opt)))
    return files


def read_test_options(option_file: Path) -> dict[str, Any]:
    """An option file as BasicSR's test command sees it, without its command line or result folders.

    Raises:
        OptionError: it has another model, or no test sets.
    """
    opt = yaml.safe_load(option_file.read_text(encoding='utf-8'))
    if opt.get('model_type') != 'ClassPruningModel':
        raise OptionError(
            f'{option_file}: model_type is {opt.get("model_type")!r}; only a ClassPruningModel has levels to compare.'
        )
    if not opt.get('datasets'):
        raise OptionError(f'{option_file}: datasets is missing; name the test sets there, as in options/test_cp_*.yml.')
    opt |= {'is_train': False, 'dist': False, 'rank': 0, 'world_size': 1}
    opt['num_gpu'] = torch.cuda.device_count() if opt.get('num_gpu', 'auto') == 'auto' else opt['num_gpu']
    opt['manual_seed'] = opt.get('manual_seed') or 0
    opt['path'] = {
        key: osp.expanduser(value) if isinstance(value, str) else value
        for key, value in (opt.get('path') or {}).items()
    }
    opt['val'] = opt.get('val') or {}
    for phase, block in opt['datasets'].items():
        block |= {'phase': phase.split('_')[0]} | ({'scale': opt['scale']} if 'scale' in opt else {})
    return opt


def _fingerprint(opt: Mapping[str, Any]) -> str:
    parts = {key: opt.get(key) for key in ('network_g', 'path', 'scale', 'manual_seed')}
    parts['val'] = {key: opt['val'].get(key) for key in ('tile', 'budget_tolerance', 'precision')}
    parts['datasets'] = {name: block for name, block in opt['datasets'].items()}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    checkpoint = opt['path'].get('pretrain_network_g')
    if checkpoint and Path(checkpoint).is_file():  # else the model says so when it is built
        digest.update(Path(checkpoint).read_bytes())
    return digest.hexdigest()[:12]


def title_of(block: Mapping[str, Any]) -> str:
    """A dataset's name, with what was done to its images: ``BSD100 x4``, ``CBSD68 sigma 25``."""
    scale, sigma = block.get('scale', 1), block.get('sigma')
    title = str(block['name'])
    if scale != 1:
        title += f' x{scale}'
    if sigma is not None:
        title += f' sigma {sigma:g}' if isinstance(sigma, (int, float)) else f' sigma {sigma[0]:g} to {sigma[1]:g}'
    return title
