"""Sharing work out over processes that torchrun or SLURM started, without any connection between them."""

from __future__ import annotations

import os

# torchrun's names, then SLURM's: https://pytorch.org/docs/stable/elastic/run.html, https://slurm.schedmd.com/srun.html.
# Of the latter only a step's number of tasks says that srun started several: a batch script itself has the others, too.
_NAMES = (('RANK', 'WORLD_SIZE', 'LOCAL_RANK'), ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'))


def place() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where nobody started several."""
    for rank, count, _ in _NAMES:
        if rank in os.environ and count in os.environ:
            return int(os.environ[rank]), int(os.environ[count])
    return 0, 1


def take_device() -> None:
    """Let this process use a CUDA device of its own, where there are several."""
    import torch

    local = next((os.environ[name] for *_, name in _NAMES if name in os.environ), None)
    if local is not None and torch.cuda.device_count() > 1:
        torch.cuda.set_device(int(local) % torch.cuda.device_count())


def own_first(count: int, rank: int, world: int) -> list[int]:
    """All of ``count`` items in the order in which a process should look at them: its own share, then the others'.

    A process passes over what is done already. So it finishes what a process that died has left, and nobody has to
    wait. The others' items come last to first, where they are busy last.
    """
    own = range(rank, count, world)
    others = [index for index in reversed(range(count)) if index % world != rank]
    return [*own, *others]
