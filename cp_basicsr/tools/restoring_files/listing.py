"""From what the user names, files, folders and globs, to pairs of a picture and the file it is restored to."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cp_basicsr.data.files import is_current

from .stamp import MAKER, STAMPED, read_stamp

FORMATS = {
    '.png': 'PNG',
    '.jpg': 'JPEG',
    '.jpeg': 'JPEG',
    '.tif': 'TIFF',
    '.tiff': 'TIFF',
    '.webp': 'WEBP',
    '.bmp': 'BMP',
}


class InputError(ValueError):
    """An input or output cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Job:
    """A picture to restore.

    Attributes:
        source: its file.
        target: the file it is restored to.
        map: the file of its level map, or None.
    """

    source: Path
    target: Path
    map: Path | None

    def is_done(self) -> bool:
        """Whether all that it makes is there, and not older than the picture."""
        return all(is_current(made, self.source) for made in (self.target, self.map) if made is not None)

    def why_kept(self, stamp: str) -> str | None:
        """Why the file that stands at its target must not be replaced unasked.

        Args:
            stamp: of what would be written there.

        Returns:
            None: nothing is there, or it was made with these settings, or is outdated, or cannot tell (BMP).
        """
        if FORMATS[self.target.suffix.lower()] not in STAMPED or not self.target.exists():
            return None
        found = read_stamp(self.target)
        if found is None:
            return 'not made by cp-restore'
        if found == stamp or not is_current(self.target, self.source):
            return None
        return f'made with other settings: {found.removeprefix(MAKER)}'


@dataclass(frozen=True)
class Listing:
    """What was found.

    Attributes:
        jobs: pictures to restore.
        others: how many visible files of folders are of other kinds, by extension.
    """

    jobs: list[Job]
    others: Counter[str]


def list_jobs(inputs: Sequence[str], out: Path, suffix: str | None = None, maps: bool = False) -> Listing:
    """The jobs of a command, sorted by source within each input.

    A single picture may be given a file as ``out``. Else ``out`` is a folder: the pictures of one folder or glob lie in
    it as they lie below their folder; those of several inputs in a subfolder for each folder given.

    Args:
        inputs: files, folders, which are searched at any depth, and globs (``**`` stands for any folders).
        out: a folder, or a file with an extension of :data:`FORMATS`.
        suffix: extension of the restored files; None: that of the picture.
        maps: whether each gets a level map beside it, ``NAME_levels.png``; where two pictures differ only in their
            extension, NAME is with it.

    Raises:
        InputError: an input is missing or holds no picture, or two results, or a result and a picture, are one file, or
            nothing can be written to ``out``.
    """
    others: Counter[str] = Counter()
    _check_writable(out)
    if out.is_file() or (out.suffix.lower() in FORMATS and not out.is_dir()):
        single = Path(inputs[0]).expanduser()
        if len(inputs) > 1 or not single.is_file():
            raise InputError(f'-o {out} is a file, but more than one picture may be restored: name a folder.')
        _check_suffix(out)
        found = [(single, out)]
    else:
        found = []
        for text in inputs:
            for source, relative in _pictures(text, out, len(inputs) > 1, others):
                target = out / relative
                found.append((source, target.with_suffix(suffix) if suffix else target))
    found = list(dict.fromkeys(found))
    alike = Counter(target.with_suffix('') for _, target in found)
    jobs = [
        Job(source, target, _map_of(target, alike[target.with_suffix('')] > 1) if maps else None)
        for source, target in found
    ]
    _check_apart(jobs)
    return Listing(jobs, others)


def _map_of(target: Path, with_extension: bool) -> Path:
    return target.with_name(f'{target.name if with_extension else target.stem}_levels.png')


def _check_writable(out: Path) -> None:
    """Before hours of work rather than after the first picture."""
    # Not Path.exists, which raises where a folder above may not be entered.
    there = next(path for path in (out.resolve(), *out.resolve().parents) if os.path.exists(path))
    if not os.access(there, os.W_OK) or (there != out.resolve() and not there.is_dir()):
        raise InputError(f'-o {out}: {there} cannot be written to; choose another -o.')


def _pictures(text: str, out: Path, several: bool, others: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """Pictures of one input with their places below the output folder; counts files of other kinds."""
    path = Path(text).expanduser()
    if path.is_dir():
        files, root = path.rglob('*'), path
        prefix = Path(path.resolve().name) if several else Path()
    elif path.is_file():
        _check_suffix(path)
        yield path, Path(path.name)
        return
    elif glob.has_magic(text):
        files, root = map(Path, glob.glob(str(path), recursive=True)), _root(path)
        prefix = Path()
    else:
        raise InputError(f'{text}: no such file or folder (looked for it from {Path.cwd()}).')
    made, empty = out.resolve(), True
    inside = root.resolve() in made.parents  # then what an earlier run made is not restored again
    for file in sorted(files):
        place = file.relative_to(root)
        hidden = any(part.startswith('.') for part in place.parts)
        if hidden or not file.is_file() or (inside and made in file.resolve().parents):
            continue
        if file.suffix.lower() not in FORMATS:
            others[file.suffix.lower() or 'no extension'] += 1
            continue
        empty = False
        yield file, prefix / place
    if empty:
        kinds = ' '.join(FORMATS)
        raise InputError(f'{text}: no picture there. Looked for {kinds}, in subfolders too, hidden files left out.')


def _root(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    first = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
    return Path(*pattern.parts[:first])


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise InputError(f'{path}: {path.suffix or "no extension"} is no known format; allowed: {" ".join(FORMATS)}.')


def _check_apart(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    made: dict[Path, Path] = {}
    for job in jobs:
        for path in (job.target, job.map):
            if path is None:
                continue
            place = path.resolve()
            if place in sources:
                raise InputError(f'{path} is one of the pictures and would be overwritten: choose another -o.')
            if place in made:
                raise InputError(
                    f'{made[place]} and {job.source} would both be restored to {path}: restore them to two folders.'
                )
            made[place] = job.source
