"""Rows of the support table are found by trying; every architecture of BasicSR has one."""

import pytest
from basicsr.utils.registry import ARCH_REGISTRY
from networks import Registered

from cp_basicsr.archs.adapters import REFUSED
from cp_basicsr.archs.building import registered_names
from cp_basicsr.archs.examples import EXAMPLES
from cp_basicsr.options import OptionError
from cp_basicsr.tools import support_table
from cp_basicsr.tools.support_table import BEGIN, END, Support, as_markdown, insert, main, support_of

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def checkpoints_only(monkeypatch):
    """ONNX and torch.export have tests of their own, and take seconds for each network."""
    monkeypatch.setattr(support_table, 'FORMATS', ('pth', 'safetensors'))


def test_every_architecture_of_basicsr_is_refused_or_has_an_example():
    own = {name for name, key in registered_names().items() if ARCH_REGISTRY.get(key).__module__.startswith('basicsr.')}
    assert own == (own & REFUSED.keys()) | EXAMPLES.keys()


def test_a_row_is_what_was_found(monkeypatch):
    assert support_of('SRVGGNetCompact') == Support(
        'SRVGGNetCompact', '3 of 4', 'by tile', support_of('SRVGGNetCompact').engine, 'pth, safetensors',
        'yes (RealESRGAN Compact)',
    )  # fmt: skip
    monkeypatch.setenv('CP_ENGINE', 'reference')
    edsr = support_of('EDSR')
    assert (edsr.level_map, edsr.engine, edsr.gui) == ('by tile', 'none: CP_ENGINE=reference', 'no')
    video = support_of('DUF')
    assert (video.level_map, video.export) == ('whole videos', 'pth, safetensors')


def test_a_gui_that_computes_something_else_is_told(monkeypatch):
    monkeypatch.setattr(support_table, 'SAME', -1.0)
    assert support_of('SRVGGNetCompact').gui == 'no: it loads, but computes something else'


def test_an_architecture_of_a_user_is_not_guessed():
    ARCH_REGISTRY.register(Registered)
    try:
        assert 'Registered' in registered_names() and support_of('Registered').convert.startswith('not tried')
    finally:
        del ARCH_REGISTRY._obj_map['Registered']


def test_the_table_is_put_between_its_comments_and_nowhere_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(support_table, 'support_of', lambda name: Support(name, 'yes'))
    path = tmp_path / 'README.md'
    path.write_text(f'before\n{BEGIN}\nold\n{END}\nafter\n')
    main(['--write', str(path)])
    text = path.read_text()
    assert text.startswith(f'before\n{BEGIN}\n') and text.endswith(f'{END}\nafter\n') and 'old' not in text
    assert all(f'| {name} | yes |' in text for name in EXAMPLES) and 'StyleGAN2Generator (it generates' in text
    main(['--write', str(path)])
    assert path.read_text() == text
    path.write_text('no place')
    with pytest.raises(SystemExit, match='has no place for the table'):
        main(['--write', str(path)])
    assert path.read_text() == 'no place'


def test_bars_inside_a_cell_do_not_split_it():
    assert '| a/b | yes |' in as_markdown([Support('a|b', 'yes')])
    with pytest.raises(OptionError, match='has no place'):
        insert(BEGIN, 'table', 'here')
