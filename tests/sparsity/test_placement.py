import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import level_at

from cp_basicsr.sparsity import ImagePlacement, TokenPlacement, UnplacedLayerError, WindowPlacement
from cp_basicsr.sparsity.placement import TileGrid


def grid_of(height, width, tile, images=1, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-height // tile), -(-width // tile)
    return TileGrid(torch.randint(0, count, (images, rows, columns), generator=generator), tile, height, width)


@settings(max_examples=80, deadline=None)
@given(
    lq=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.integers(1, 24),
    images=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_a_pixel_of_any_map_takes_the_level_of_the_tile_at_its_centre(lq, size, tile, images, seed):
    grid = grid_of(*lq, tile, images, seed)
    levels = grid.at(*size)
    assert levels.shape == (images, *size)
    for b, y, x in itertools.product(range(images), range(size[0]), range(size[1])):
        assert levels[b, y, x] == level_at(grid.levels[b], tile, y, x, lq, size)


def test_tiles_keep_their_pixels_through_upsampling():
    grid = grid_of(5, 7, 2)
    lq = grid.at(5, 7)
    for scale in (2, 3, 4):
        assert torch.equal(grid.at(5 * scale, 7 * scale), lq.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


@settings(max_examples=100, deadline=None)
@given(
    lq=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    halvings=st.integers(0, 3),
    rounding=st.sampled_from(['up', 'down']),
)
def test_a_map_halved_again_and_again_is_placed(lq, halvings, rounding):
    height, width = lq
    for _ in range(halvings):
        height, width = ((side + (rounding == 'up')) // 2 for side in (height, width))
    if min(height, width) < 1 or (rounding == 'down' and (height << halvings, width << halvings) != lq):
        return  # repeated rounding down loses more than one pixel of the ratio
    levels = ImagePlacement().levels(grid_of(*lq, 3), (1, 5, height, width))
    assert levels.shape == (1, height, width)


@pytest.mark.parametrize(
    ('placement', 'shape'),
    [
        (ImagePlacement(), (1, 8, 12, 9)),  # padded: neither 12 x 8 nor a multiple
        (ImagePlacement(), (1, 8, 24, 8)),  # two ratios
        (ImagePlacement(), (1, 8, 6, 8)),
        (ImagePlacement(), (1, 8, 5, 12, 8)),
        (ImagePlacement(), (1, 8, 96)),
        (ImagePlacement(), (3, 8, 12, 8)),  # 3 rows for 2 images
        (TokenPlacement(), (2, 95, 8)),
        (TokenPlacement(), (2, 12, 8, 8)),
        (TokenPlacement(), (3, 96, 8)),
        (WindowPlacement(4, 0), (2 * 6, 9, 8)),
        (WindowPlacement(4, 0), (2 * 5, 16, 8)),
        (WindowPlacement(5, 2), (2 * 4, 25, 8)),  # windows of 5 do not tile 12 x 8
    ],
    ids=str,
)
def test_outputs_that_do_not_lie_on_the_image_are_refused(placement, shape):
    grid = grid_of(12, 8, 4, images=2)
    if shape[0] == 1:
        shape = (2, *shape[1:])
    with pytest.raises(UnplacedLayerError):
        placement.levels(grid, shape)


@pytest.mark.parametrize(('placement', 'shape'), [(ImagePlacement(), (3, 8, 1, 1)), (TokenPlacement(), (3, 8))])
def test_what_sees_the_whole_image_runs_at_the_densest_level_it_holds(placement, shape):
    grid = TileGrid(torch.tensor([[[0, 1]], [[0, 0]], [[2, 1]]]), 4, 4, 8)
    assert placement.levels(grid, shape).flatten().tolist() == [1, 0, 2]


def test_rows_that_repeat_an_image_share_its_map():
    grid = grid_of(4, 4, 2, images=2)
    levels = ImagePlacement().levels(grid, (6, 8, 4, 4))
    for row in range(6):
        assert torch.equal(levels[row], grid.at(4, 4)[row // 3])


def test_tokens_are_pixels_in_row_major_order():
    grid = grid_of(5, 7, 2, images=2)
    levels = TokenPlacement().levels(grid, (2, 35, 8))
    assert levels.tolist() == [grid.at(5, 7)[b].flatten().tolist() for b in range(2)]


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 8), counts=st.tuples(st.integers(1, 3), st.integers(1, 3)), tile=st.integers(1, 12),
    data=st.data(),
)  # fmt: skip
def test_shifted_windows_take_their_tokens_from_where_the_shift_found_them(window, counts, tile, data):
    height, width = (window * count for count in counts)
    shift = data.draw(st.integers(0, window - 1))
    grid = grid_of(height, width, tile, images=2)
    # As SwinIR does: roll, then cut into windows.
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    pixel = torch.roll(y * width + x, (-shift, -shift), dims=(0, 1))
    order = [
        pixel[top : top + window, left : left + window].flatten().tolist()
        for top in range(0, height, window)
        for left in range(0, width, window)
    ]
    levels = WindowPlacement(window, shift).levels(grid, (2 * len(order), window * window, 8))
    for row, pixels in enumerate(order * 2):
        image = row // len(order)
        expected = [
            level_at(grid.levels[image], tile, *divmod(p, width), (height, width), (height, width)) for p in pixels
        ]
        assert levels[row].tolist() == expected
