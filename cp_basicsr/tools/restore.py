"""Restore pictures with a ClassPruning network: files, folders, globs.

    cp-restore photos -o restored --model net_g_latest.pth --budget 0.5
    cp-restore 'scans/**/*.tif' photo.jpg -o restored --model srvgg_small_x2

The checkpoint describes its network. PNG, JPEG, TIFF, WebP and BMP keep format,
folders, 16 bit, alpha and colour profile; photographs are turned upright. What
is done is passed over; what was made with other settings is named and kept.
Under torchrun or srun the pictures are shared out over the processes. Status:
0, 1 (a picture failed or was kept), 2 (cannot start), 130 (Ctrl-C; run again).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from cp_basicsr.tools.ranks import place, take_device
from cp_basicsr.tools.restoring_files.listing import FORMATS, Job, list_jobs
from cp_basicsr.tools.restoring_files.stamp import stamp_of
from cp_basicsr.tools.stopping import termination_as_exit

if TYPE_CHECKING:
    from logging import Logger

    from cp_basicsr.restorer import Restoration, Restorer

FORMAT_CHOICES = ('same', 'png', 'jpg', 'tif', 'webp', 'bmp')
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


@dataclass
class Tally:
    """What has become of the pictures so far.

    Attributes:
        total: pictures of this process, those done before included.
        before: how many were done before.
        kept: why the file at a picture's target is not replaced, by that file.
        restored: how many have been restored.
        megapixels: their size, before restoring.
        seconds: time that they took, reading and writing included.
        macs, dense_macs: MACs spent on them, and what the dense network would have.
        failed: the reason by file.
    """

    total: int
    before: int
    kept: Mapping[Path, str]
    restored: int = 0
    megapixels: float = 0.0
    seconds: float = 0.0
    macs: int = 0
    dense_macs: int = 0
    failed: dict[Path, str] = field(default_factory=dict)

    def add(self, pixels: int, restoration: Restoration) -> None:
        """Count a restored picture of so many pixels."""
        self.restored += 1
        self.megapixels += pixels / 1e6
        self.macs += restoration.macs
        self.dense_macs += restoration.dense_macs

    @property
    def speed(self) -> str:
        """Megapixels of the pictures given in a second."""
        return f'{self.megapixels / self.seconds:.2f} MP/s' if self.seconds else '0 MP/s'

    def summary(self) -> str:
        """One sentence, and a line for each reason to leave files alone, and for each picture that failed."""
        parts = [f'{self.restored} of {self.total} restored']
        if self.restored:
            parts[0] += (
                f' ({self.megapixels:.1f} MP in {self.seconds:.1f} s, {self.speed}, '
                f'{100 * self.macs / self.dense_macs:.1f} % of the dense MACs)'
            )
        if self.before:
            parts.append(f'{self.before} done before with these settings (--overwrite restores them again)')
        if self.kept:
            parts.append(f'{len(self.kept)} left as they are in the output (choose another -o, or --overwrite)')
        if self.failed:
            parts.append(f'{len(self.failed)} failed')
        lines = [
            f'{count} {reason}; such as {next(path for path in self.kept if self.kept[path] == reason)}'
            for reason, count in Counter(self.kept.values()).items()
        ]
        lines += [f'{path}: {reason}' for path, reason in self.failed.items()]
        return '\n  '.join([', '.join(parts) + (':' if lines else ''), *lines])


def restore_all(jobs: Sequence[Job], one: Callable[[Job], tuple[int, Restoration]], tally: Tally, label: str) -> None:
    """Restore pictures one after the other, with a progress bar; those that fail are logged, and the rest go on.

    Args:
        jobs: the pictures.
        one: restores one and gives its number of pixels.
        tally: is kept up to date.
        label: stands before the bar.
    """
    from basicsr.utils import get_root_logger
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    log, start = get_root_logger(), time.perf_counter()
    with logging_redirect_tqdm([log]), tqdm(jobs, desc=label, unit='image', dynamic_ncols=True) as progress:
        for job in progress:
            try:
                tally.add(*one(job))
            except Exception as error:  # one picture's misfortune, whatever it is, must not cost the others
                tally.failed[job.source] = f'{error}' if isinstance(error, (ValueError, OSError)) else repr(error)
                expected = isinstance(error, (ValueError, OSError))
                log.error(f'{job.source}: {tally.failed[job.source]}', exc_info=not expected)
            finally:
                tally.seconds = time.perf_counter() - start
            progress.set_postfix_str(tally.speed)


class FileRestorer:
    """Restores files.

    Args:
        restorer: the network.
        how: arguments of :meth:`.Restorer.restore`.
        stamp: what each restored picture says of itself.
    """

    def __init__(self, restorer: Restorer, how: Mapping[str, Any], stamp: str) -> None:
        self.restorer = restorer
        self.how = how
        self.stamp = stamp

    def __call__(self, job: Job) -> tuple[int, Restoration]:
        """Restore one file; returns its number of pixels too.

        Raises:
            ReadError, WriteError, PictureError, BudgetError, OSError: it cannot be read, restored or written.
        """
        from cp_basicsr.data.files import write_whole
        from cp_basicsr.tools.restoring_files.reading import read_picture
        from cp_basicsr.tools.restoring_files.writing import check_form, encode

        picture = read_picture(job.source)
        form = FORMATS[job.target.suffix.lower()]
        height, width, *channels = picture.pixels.shape
        check_form((height * self.restorer.scale, width * self.restorer.scale, *channels), form)
        restoration = self.restorer.restore(picture.pixels, **self.how)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        if job.map is not None:
            write_whole(job.map, encode(self.restorer.draw_levels(restoration), 'PNG'))
        write_whole(job.target, encode(restoration.image, form, picture.profile, self.stamp))
        return height * width, restoration


def run(options: argparse.Namespace, stop: Callable[[str], NoReturn]) -> int:
    """Restore what a command line asks for; ``stop`` ends the program with a message. Returns the exit status."""
    rank, world = place()
    try:
        suffix = None if options.format == 'same' else f'.{options.format}'
        found = list_jobs(options.inputs, options.output, suffix, options.map)
        log = _log()
        stamp = _stamp(options)
    except ValueError as error:
        stop(str(error))
    own = found.jobs[rank::world]
    if found.others and rank == 0:
        kinds = ', '.join(f'{kind} ({count})' for kind, count in found.others.most_common())
        log.info(f'Files of other kinds are left out: {kinds}.')
    reasons = {} if options.overwrite else {job: job.why_kept(stamp) for job in own}
    kept = {job.target: reason for job, reason in reasons.items() if reason}
    jobs = [job for job in own if options.overwrite or (job.target not in kept and not job.is_done())]
    tally = Tally(len(own), len(own) - len(jobs) - len(kept), kept)
    label = f'rank {rank} of {world}' if world > 1 else 'restored'
    try:
        if jobs:
            restore_all(jobs, FileRestorer(_load(options, stop), _how(options), stamp), tally, label)
    except KeyboardInterrupt:
        log.warning(f'Interrupted; {tally.summary()}\nRun the same command again to go on.')
        return INTERRUPTED
    log.info(f'Rank {rank} of {world}: {tally.summary()}' if world > 1 else tally.summary())
    return FAILED if tally.failed or kept else 0


def _load(options: argparse.Namespace, stop: Callable[[str], NoReturn]) -> Restorer:
    from cp_basicsr.restorer import load

    take_device()
    try:
        restorer = load(options.model, memory=options.memory)
        restorer.check(restorer.choice(**_how(options)), '--budget')
    except ValueError as error:
        stop(str(error))
    return restorer


def _how(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ('budget', 'level', 'tile', 'overlap', 'precision')}


def _stamp(options: argparse.Namespace) -> str:
    from cp_basicsr.loading import find_checkpoint

    return stamp_of(find_checkpoint(options.model), _how(options) | {'tile': options.tile or 'none'})


def _log() -> Logger:
    from cp_basicsr import autoload

    autoload.activate()
    from basicsr.utils import get_root_logger

    log = get_root_logger()
    log.setLevel('INFO')
    return log


def _tile(text: str) -> int | None | Literal['trained']:
    if text in ('none', 'trained'):
        return None if text == 'none' else 'trained'
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is none of: a number of pixels, 'none', 'trained'")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='cp-restore', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='files, folders or quoted globs')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='OUT', help='folder, or one file')
    parser.add_argument('--model', required=True, metavar='CKPT', help='checkpoint, or name of a shipped one')
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument('--budget', type=float, metavar='B', help='share of the dense MACs; default: trained')
    amount.add_argument('--level', type=int, metavar='N', help='one level: 0 sparsest, -1 densest')
    parser.add_argument(
        '--tile',
        type=_tile,
        default='trained',
        metavar='N',
        help='pixels routed as one, or none; default: trained',
    )
    parser.add_argument('--overlap', type=int, metavar='P', help='cut tiles, which see P pixels beyond their own')
    parser.add_argument('--precision', default='fp32', metavar='P', help='fp32 (default), bf16, on CUDA fp16')
    parser.add_argument('--map', action='store_true', help='also NAME_levels.png: the level map drawn over')
    parser.add_argument(
        '--format',
        choices=FORMAT_CHOICES,
        default='same',
        metavar='F',
        help=f'of {" ".join(FORMAT_CHOICES)} (default: same)',
    )
    parser.add_argument('--overwrite', action='store_true', help='restore all, whatever stands in the output')
    parser.add_argument(
        '--memory',
        type=float,
        default=4.0,
        metavar='GIB',
        help='working limit, default 4 (large pictures: strips)',
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    with termination_as_exit():
        try:
            sys.exit(run(options, lambda message: parser.exit(UNUSABLE, f'{parser.prog}: error: {message}\n')))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


if __name__ == '__main__':
    main()
