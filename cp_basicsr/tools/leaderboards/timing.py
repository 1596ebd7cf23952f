"""Seconds of all rows, measured row beside row and several times over, apart from everything else."""

from __future__ import annotations

import torch
from tqdm import tqdm

from cp_basicsr.tools.report import machine

from .images import Images
from .measuring import LoadSubject, Plan, control_maps, load_image
from .records import Records

REPEATS = 3  # of which the fastest counts: what disturbs a run only ever slows it


@torch.no_grad()
def time_rows(images: Images, load: LoadSubject, plan: Plan, records: Records, count: int) -> None:
    """Time every row on the first images of a set.

    Args:
        images: the dataset's.
        load: makes the subject of a batch and a name.
        plan: the rows.
        records: complete; they take the seconds.
        count: how many images.
    """
    everything = records.all()
    maps = control_maps(plan, everything) if plan.free else {}
    for index in tqdm(range(min(count, len(everything))), desc=f'{records.folder.name}, seconds', unit='image'):
        record = everything[index]
        subject = load_image(images, index, load)
        here = {key: levels[index] for key, levels in maps.items()} or {
            key: levels[0] for key, levels in control_maps(plan, [record]).items()
        }
        seconds = {key: [] for key in (*plan.chosen(), *here)}
        for _ in range(REPEATS):
            for key, choice in plan.chosen().items():
                seconds[key].append(subject.choose(choice).seconds)
            for key, levels in here.items():
                seconds[key].append(subject.follow(levels).seconds)
        record.timed = {key: min(times) for key, times in seconds.items()}
        record.machine = machine(plan.choice.precision)
        records.write(index, record)
