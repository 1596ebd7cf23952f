import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cp_basicsr.sparsity import NMPattern, PatternError


@pytest.mark.parametrize(
    ('m', 'levels', 'told'),
    [
        (4, yaml.safe_load('[2:4]'), ['124', 'at most m = 4', 'base-60']),
        (4, [2, 1, 4], ['[2, 1, 4]', 'write [1, 2, 4]']),
        (4, [1, 1, 4], ['[1, 1, 4]', 'write [1, 4]']),
        (4, [1, 8], ['8', 'at most m = 4']),
        (4, [0, 4], ['0', 'at least 1']),
        (4, [-1, 4], ['-1', 'at least 1']),
        (4, [True, 4], ['True (bool)', 'only integers']),
        (4, ['2:4', 4], ["'2:4' (str)", '2, not 2:4']),
        (4, [1.0, 4], ['1.0 (float)', 'only integers']),
        (4, [], ['[]', 'write a list']),
        (4, None, ['None', 'write a list']),
        (4, 124, ['124', 'write a list']),
        (4, '2:4', ["'2:4'", 'write a list']),
        (4, [1, 2], ['[1, 2]', 'write [1, 2, 4]']),
        (4, [4], ['[4]', 'at least two levels']),
        (1, [1, 2], ['.m is 1', '2 to 256']),
        (257, [257], ['.m is 257', '2 to 256']),
        (4.0, [1, 4], ['.m holds 4.0', 'only integers']),
        (True, [1, 2], ['.m holds True', 'only integers']),
        ('4', [1, 4], ["'4' (str)", 'only integers']),
    ],
)
def test_levels_that_cannot_be_used_are_named_with_their_place_and_a_way_out(m, levels, told):
    with pytest.raises(PatternError) as error:
        NMPattern(m, levels)
    for text in ['network_g.sparsity', *told]:
        assert text in str(error.value)


def test_the_place_in_a_message_can_be_another():
    with pytest.raises(PatternError, match=r'^other\.place\.levels'):
        NMPattern(4, [5], where='other.place')


@given(st.integers(2, 32), st.integers(1, 200), st.data())
def test_kept_weights_of_a_row_are_the_sum_over_its_groups(m, width, data):
    n = data.draw(st.integers(1, m - 1))
    pattern = NMPattern(m, [n, m])
    by_groups = sum(-(-n * min(m, width - start) // m) for start in range(0, width, m))
    assert pattern.kept(n, width) == by_groups
    assert pattern.kept(m, width) == width


def test_levels_count_from_either_end():
    pattern = NMPattern(4, [1, 2, 4])
    assert [pattern.index(k) for k in (0, 1, 2, -1, -2, -3)] == [0, 1, 2, 2, 1, 0]
    assert pattern.densest == 2
    assert pattern.label(1) == '2:4'
    for wrong in (3, -4, True, 1.0, None, '0'):
        with pytest.raises(PatternError, match='does not exist'):
            pattern.index(wrong)
