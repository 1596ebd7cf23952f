"""Replaces the results in a Markdown file by tables made from result files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from cp_basicsr.options import OptionError
from cp_basicsr.tools.report import write_text

from .markdown import as_markdown
from .results import Table
from .summary import summary_as_markdown

# What goes between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
CONTENTS: dict[str, Callable[[Sequence[Table]], str]] = {'summary': summary_as_markdown, 'tables': as_markdown}


def read_tables(results: Sequence[Path]) -> list[Table]:
    """The tables of result files, in their order.

    Raises:
        OptionError: a file is missing or was not written by the leaderboard.
    """
    tables = []
    for path in results:
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            tables += [Table.from_json(table) for table in content['tables']]
        except OSError as error:
            raise OptionError(f'{path}: {error.strerror}. Give a results.json of the leaderboard.') from error
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f'{path} is no results.json of this leaderboard ({error!r}).') from error
    return tables


def update_readme(readme: Path, tables: Sequence[Table]) -> None:
    """Replace what stands between markers: ``summary``, a line for each table, and ``tables``, all of them.

    Args:
        readme: a text with a line ``<!-- summary: begin -->`` and a later one ``<!-- summary: end -->``, or with such
            lines for ``tables``, or with both.
        tables: of the leaderboard.

    Raises:
        OptionError: the text has no pair of markers or half of one, or cannot be read.
    """
    try:
        text = readme.read_text(encoding='utf-8')
    except OSError as error:
        raise OptionError(f'{readme}: {error.strerror}. Give a Markdown file with markers.') from error
    lines = text.splitlines()
    names = [name for name in CONTENTS if any(marker in lines for marker in _markers(name))]
    if not names:
        wanted = ' or '.join(' and '.join(_markers(name)) for name in CONTENTS)
        raise OptionError(f'{readme} has no place for results; write two lines into it: {wanted}.')
    for name in names:
        text = _replaced(text, name, CONTENTS[name](tables), readme)
    write_text(readme, text)


def _replaced(text: str, name: str, content: str, readme: Path) -> str:
    begin, end = _markers(name)
    lines = text.splitlines(keepends=True)
    begins, ends = ([index for index, line in enumerate(lines) if line.rstrip() == mark] for mark in (begin, end))
    if len(begins) != 1 or len(ends) != 1 or ends < begins:
        raise OptionError(f'{readme} needs one line {begin} and after it one line {end}; results go between them.')
    return ''.join([*lines[: begins[0] + 1], f'{content.strip()}\n', *lines[ends[0] :]])


def _markers(name: str) -> tuple[str, str]:
    return f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
