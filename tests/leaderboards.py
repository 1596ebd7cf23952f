"""A tiny network, its test option file and the leaderboard run on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from training import (
    SRVGG,
    build,
    separate,
    training_options,
    user_options,
    user_test_options,
    validation_loader,
    write_pairs,
)

from cp_basicsr.models.calibrating import calibrate
from cp_basicsr.tools import leaderboard

SIZE = (64, 80)


def tiny_network(
    folder: Path, base: dict[str, Any] = SRVGG, dataset: dict[str, Any] | None = None, size: tuple[int, int] = SIZE
) -> Any:
    """A network in `folder/experiments` whose classifier gives tiles different levels, and two images to test it.

    `dataset` replaces the block that reads the images.
    """
    write_pairs(folder, size=size, scale=base.get('upscale', 1))
    options = training_options(folder, base)
    if dataset:
        options['datasets']['val'] = {**dataset, 'phase': 'val'}
        options['train']['calibration']['dataset'] = dataset
    model = build(options)
    images = [data['lq'] for data in validation_loader(options)]
    separate(model.net.classifier, images, tile=8)
    calibrate(model.net, images, 0.6, 8)
    model.save_network(model.net_g, 'net_g', -1)
    return model.net.eval()


def test_file_options(
    folder: Path, base: dict[str, Any] = SRVGG, dataset: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The test option file that belongs to it."""
    checkpoint = folder / 'experiments/tiny/models/net_g_latest.pth'
    options = user_test_options(user_options(folder, base), checkpoint)
    return options | ({'datasets': {'test_1': dataset}} if dataset else {})


def write_options(options: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def run(options: dict[str, Any], folder: Path, *arguments: str, name: str = 'tiny_test') -> list[dict[str, Any]]:
    """Run the command with `folder/out` for its files; the tables of its JSON file."""
    path = write_options(options, folder / f'{name}.yml')
    leaderboard.main(['-opt', str(path), '--out', str(folder / 'out'), *arguments])
    return tables(folder)


def tables(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / 'out/results.json').read_text())['tables']
