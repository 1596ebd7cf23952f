"""Replaces the results in a README by tables made from result files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cp_basicsr.options import OptionError
from cp_basicsr.tools.report import write_text

from .markdown import as_markdown
from .results import Table
from .summary import summary_as_markdown

BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'


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


def update_readme(readme: Path, results: Sequence[Path]) -> None:
    """Replace what stands between the markers: a summary, and all tables folded away.

    Args:
        readme: a text with a line ``<!-- results: begin -->`` and a later one ``<!-- results: end -->``.
        results: ``results.json`` files of the leaderboard.

    Raises:
        OptionError: the text has not exactly one pair of markers, or a result file cannot be read.
    """
    text = readme.read_text(encoding='utf-8')
    begin, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < begin:
        raise OptionError(f'{readme} needs one line {BEGIN} and after it one line {END}; results go between them.')
    tables = read_tables(results)
    parts = [
        summary_as_markdown(tables),
        '<details>\n<summary>All tables</summary>',
        as_markdown(tables) + '\n</details>',
    ]
    content = '\n\n'.join(part for part in parts if part)
    write_text(readme, f'{text[: begin + len(BEGIN)]}\n{content}\n{text[end:]}')
