"""Run by torchrun in test_distributed.py: one process's share of a run through the three stages."""

import json
import sys
from pathlib import Path
from typing import Any

import cp_basicsr.archs  # noqa: F401  (BasicSR, mended)

# isort: split
import torch
from basicsr.models import build_model
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info, init_dist
from training import half_dark_batch_of, snapshot, train


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    init_dist('pytorch')
    rank, world_size = get_dist_info()
    for name in names:
        torch.save(
            run(json.loads((folder / f'{name}.json').read_text()), rank, world_size), folder / f'{name}_{rank}.pth'
        )


def run(options: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """State and logs of one run."""
    # As BasicSR's parse_options: other first weights in each process, and without manual_seed another seed.
    seed = options['manual_seed'] + rank
    set_random_seed(seed)
    model = build_model(options | {'manual_seed': seed, 'dist': True, 'rank': rank, 'world_size': world_size})

    def share(iteration: int) -> dict[str, torch.Tensor]:
        return {name: images.chunk(world_size)[rank] for name, images in half_dark_batch_of(iteration).items()}

    logs = []
    for iteration in range(1, options['train']['total_iter'] + 1):
        train(model, iteration, iteration, share, warmup_iter=2)
        logs.append(model.log_dict)
    return {'state': snapshot(model)['networks'], 'logs': logs}


if __name__ == '__main__':
    main(Path(sys.argv[1]), sys.argv[2:])
