"""README.md stays true: its order, links, commands, options and Python examples."""

import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cp_basicsr.option_files import option_file
from cp_basicsr.tools.leaderboards.readme import read_tables, update_readme

RESULTS = 'cp_basicsr/tools/reproducing/results'
ORDER = [
    'Install and run',
    'Your own option file',
    'How it works',
    'Train, resume, several GPUs',
    'Results so far',
    'Speed',
    'Which architecture supports what',
    'Restore',
    'Export',
    'Profile',
    'Cut tiles',
    'Precision',
    'On a GPU',
    'Troubleshooting',
    'Python API',
    'What is from the paper and what is ours',
    'Contributing: the house in one drawing',
    'Citation and licence',
]


@pytest.fixture(scope='module')
def readme(source: Path) -> str:
    return (source / 'README.md').read_text(encoding='utf-8')


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.M | re.S)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Module and arguments of each of our commands, joined lines taken apart at `&&`."""
    for block in blocks(text.replace('\\\n', ' '), 'bash'):
        for part in re.split(r'\n|&&', block):
            words = shlex.split(part, comments=True)
            if '-m' in words and words[words.index('-m') + 1].startswith('cp_basicsr.'):
                start = words.index('-m') + 1
                yield words[start], words[start + 1 :]
            elif words and (found := re.fullmatch(r'cp-(\w+)', words[0])):
                home = 'cp_basicsr' if found[1] in ('train', 'test') else 'cp_basicsr.tools'
                yield f'{home}.{found[1]}', words[1:]


def test_sections_stand_in_their_order(readme: str) -> None:
    assert re.findall(r'^## (.*)$', readme, re.M) == ORDER
    assert readme.index('![') < readme.index('## Install')


def test_links_lead_somewhere(readme: str, source: Path) -> None:
    targets = [target for target in re.findall(r'\]\(([^)]+)\)', readme) if '://' not in target]
    assert targets and all((source / target).is_file() for target in targets)


def test_commands_take_the_options_that_are_shown(readme: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(commands(readme))
    assert {module.rpartition('.')[2] for module, _ in found} >= {
        'train', 'test', 'demo', 'restore', 'export', 'profile', 'benchmark', 'leaderboard', 'plots',
    }  # fmt: skip
    monkeypatch.setattr(sys, 'argv', ['command', '--help'])
    for module in sorted({module for module, _ in found}):
        with pytest.raises(SystemExit):
            import_module(module).main()
        known = set(re.findall(r'(?<![\w-])--?[a-z][\w-]*', capsys.readouterr().out))
        for arguments in (arguments for name, arguments in found if name == module):
            assert {word for word in arguments if word.startswith('-')} <= known, (module, arguments)


@pytest.mark.parametrize(
    ('file', 'folder'),
    [('README.md', ''), (f'{RESULTS}/README.md', ''), (f'{RESULTS}/ablations/README.md', 'ablations')],
)
def test_results_are_those_of_the_result_files(file: str, folder: str, source: Path, tmp_path: Path) -> None:
    """As the commands that README names write them; nobody has changed a figure by hand."""
    text = (source / file).read_text(encoding='utf-8')
    results = sorted((source / RESULTS / folder).glob('*.json'))
    (tmp_path / 'README.md').write_text(text, encoding='utf-8')
    update_readme(tmp_path / 'README.md', read_tables(results))
    assert len(results) > 5 and all(path.stem.removesuffix('_curve') in text for path in results)
    assert (tmp_path / 'README.md').read_text(encoding='utf-8') == text


def test_option_files_that_are_named_are_there(readme: str) -> None:
    names = set(re.findall(r'options/((?:train|test|demo)_cp_\w+\.yml)', readme))
    assert len(names) >= 5 and all(option_file(name) for name in names)


def test_python_examples_run(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    api, network = blocks(readme, 'python')
    names: dict[str, Any] = {}
    exec(api, names)
    result, picture = names['result'], names['picture']
    assert result.image.shape == (2 * picture.shape[0], 2 * picture.shape[1], 3)
    assert 0.4 < result.macs_share < 0.6 and result.levels.ndim == 2
    exec(network, names)
    assert type(names['plain']).__name__ == 'SRVGGNetCompact'
