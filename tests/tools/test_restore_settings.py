"""Results of `restore` remember their settings; results of other settings and files of others are kept and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import at_level, checkpoint, read, same_pixels, scene, write
from PIL import Image

from cp_basicsr.tools import restore
from cp_basicsr.tools.restoring_files.stamp import read_stamp

pytestmark = [pytest.mark.usefixtures('one_thread')]
SOFTWARE = 305


@pytest.fixture
def net(tmp_path: Path) -> Any:
    return checkpoint(tmp_path / 'net.pth')


@pytest.fixture
def tool(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Restore `in` to `out`; the exit status must be `code`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0, model: str = 'net.pth') -> None:
        with pytest.raises(SystemExit) as ended:
            restore.main(['in', '-o', 'out', '--model', model, *arguments])
        assert ended.value.code == code

    return run


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tif', '.webp'])
@pytest.mark.parametrize('deep', [False, True])
def test_the_settings_stand_in_the_software_field(suffix: str, deep: bool, tool: Callable, tmp_path: Path) -> None:
    name = 'a.png' if deep else 'a.bmp'
    write(tmp_path / 'in' / name, scene(deep=deep))
    tool('--level', '0', '--format', suffix[1:])
    with Image.open(tmp_path / f'out/a{suffix}') as image:
        found = image.getexif()[SOFTWARE]
    assert found.startswith('cp-restore net (') and found.endswith('), level 0, tile trained, precision fp32')
    assert read(tmp_path / f'out/a{suffix}').shape == (80, 112, 3)


@pytest.mark.parametrize(
    'other',
    [('--level', '1'), ('--budget', '0.7'), ('--level', '0', '--precision', 'bf16'), ('--level', '0', '--tile', '8')],
)
def test_results_of_other_settings_are_named_and_kept(
    other: tuple[str, ...], net: Any, tool: Callable, tmp_path: Path, log: list[str]
) -> None:
    write(tmp_path / 'in/a.png', scene())
    write(tmp_path / 'in/b.jpg', scene(24, 24))
    tool('--level', '0')
    write(tmp_path / 'in/c.png', scene(24, 32))
    before = (tmp_path / 'out/a.png').read_bytes()
    tool(*other, code=1)
    assert '1 of 3 restored' in log[-1] and '2 left as they are in the output (choose another -o, or' in log[-1]
    assert '\n  2 made with other settings: net (' in log[-1] and 'level 0, tile trained' in log[-1]
    assert (tmp_path / 'out/a.png').read_bytes() == before
    tool('--level', '1', '--overwrite')
    same_pixels(read(tmp_path / 'out/a.png'), at_level(net, scene(), 1))
    tool('--level', '1')
    assert '0 of 3 restored, 3 done before with these settings' in log[-1]


def test_other_weights_are_other_settings(tool: Callable, tmp_path: Path, log: list[str]) -> None:
    write(tmp_path / 'in/a.png', scene())
    tool('--level', '0')
    (tmp_path / 'x').mkdir()
    checkpoint(tmp_path / 'x/net.pth', weights='per_level')
    tool('--level', '0', model='x/net.pth', code=1)
    assert '1 made with other settings: net (' in log[-1]


def test_an_outdated_result_is_made_again_with_any_settings(net: Any, tool: Callable, tmp_path: Path) -> None:
    write(tmp_path / 'in/a.png', scene(24, 24))
    tool('--level', '0')
    write(tmp_path / 'in/a.png', scene())
    tool('--level', '1')
    same_pixels(read(tmp_path / 'out/a.png'), at_level(net, scene(), 1))


@pytest.mark.parametrize('newer', [False, True])
def test_files_of_others_are_never_replaced_unasked(
    newer: bool, tool: Callable, tmp_path: Path, log: list[str]
) -> None:
    names = ('out/a.png', 'in/a.png') if newer else ('in/a.png', 'out/a.png')
    for name in names:
        write(tmp_path / name, scene(), comment=None)
    (tmp_path / 'in/b.png').write_bytes((tmp_path / 'in/a.png').read_bytes())
    (tmp_path / 'out/b.png').write_text('no picture')
    tool('--level', '0', code=1)
    assert (
        '0 of 2 restored, 2 left as they are' in log[-1]
        and '\n  2 not made by cp-restore; such as out/a.png' in log[-1]
    )
    assert np.array_equal(read(tmp_path / 'out/a.png'), scene())
    tool('--level', '0', '--overwrite')
    assert all(read_stamp(tmp_path / f'out/{name}.png') for name in 'ab')


def test_bmp_cannot_tell(tool: Callable, tmp_path: Path, log: list[str]) -> None:
    write(tmp_path / 'in/a.bmp', scene())
    tool('--level', '0')
    tool('--level', '1')
    assert '0 of 1 restored, 1 done before' in log[-1]


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_a_network_may_be_called_in_any_script(suffix: str, tool: Callable, tmp_path: Path, log: list[str]) -> None:
    (tmp_path / 'net.pth').rename(tmp_path / 'modèle.pth')
    write(tmp_path / f'in/a{suffix}', scene(24, 32, deep=True))
    for _ in range(2):
        tool('--level', '0', model='modèle.pth')
    assert '0 of 1 restored, 1 done before with these settings' in log[-1]


def test_names_as_long_as_file_systems_allow(tool: Callable, tmp_path: Path) -> None:
    name = f'{"x" * 251}.png'
    write(tmp_path / 'in' / name, scene(24, 32))
    tool('--level', '0')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [name]
