"""Blocks of memory that feature maps are made of: lent once at a time, kept for the next, and not too many."""

import gc

import torch

from cp_basicsr.engine.memory import ROOM, Blocks, adjacent, empty_map, readable_beyond


def addresses(blocks, *sizes):
    return {blocks.lend(size).data_ptr() for size in sizes}


def test_a_block_comes_back_when_the_last_tensor_over_it_is_gone():
    blocks = Blocks(kept=2**20)
    lent = blocks.lend(1000)
    view, address = lent.view(10, 100)[3:], lent.data_ptr()
    del lent
    gc.collect()
    assert blocks.lend(1000).data_ptr() != address, 'the view still shows it'
    del view
    gc.collect()
    assert address in addresses(blocks, 1000, 900)


def test_blocks_that_live_at_once_do_not_overlap():
    blocks = Blocks(kept=2**20)
    for _ in range(3):
        lent = [blocks.lend(size) for size in (100, 200, 100, 150, 100)]
        for number, block in enumerate(lent):
            block.fill_(number)
        for number, block in enumerate(lent):
            assert (block == number).all()


def test_much_smaller_maps_do_not_take_a_large_block():
    blocks = Blocks(kept=2**20)
    address = blocks.lend(10_000).data_ptr()
    assert blocks.lend(100).data_ptr() != address
    assert blocks.lend(9_000).data_ptr() == address


def test_no_more_is_kept_than_allowed():
    blocks = Blocks(kept=5000 * 4)
    lent = [blocks.lend(2000) for _ in range(4)]
    del lent
    gc.collect()
    assert sum(block.nbytes for block in blocks._free) <= 5000 * 4
    blocks.lend(10_000)
    gc.collect()
    assert all(block.size < 10_000 for block in blocks._free), 'one that is larger than all of it is not kept'


def test_what_is_kept_leaves_room_for_what_is_lent():
    """Blocks of one network do not add to the memory that another one takes."""
    blocks = Blocks(kept=5000 * 4)
    blocks.lend(4000)
    gc.collect()
    lent = [blocks.lend(1500), blocks.lend(2000)]
    assert not blocks._free, 'together they would be more than 5000'
    del lent
    gc.collect()
    assert {block.size for block in blocks._free} == {1500, 2000}
    larger = [blocks.lend(7000), blocks.lend(2000)]
    assert not blocks._free and larger
    del larger
    gc.collect()
    blocks.lend(9000)
    gc.collect()
    assert sum(block.nbytes for block in blocks._free) <= 5000 * 4


def test_a_block_may_come_back_while_another_is_chosen():
    """Collecting garbage runs anywhere, also in the middle of lend."""

    class Interrupted(list):
        def __iter__(self):
            yield from list(super().__iter__())
            still_lent.clear()

    blocks = Blocks(kept=1500 * 4)
    large, *still_lent, small = (blocks.lend(size) for size in (1000, 1000, 100))
    del large, small
    gc.collect()
    blocks._free = Interrupted(blocks._free)
    assert blocks.lend(1000).numel() == 1000


def test_a_map_has_room_after_the_end_of_its_rows_and_is_lent_zeroed_or_not():
    for shape in ((1, 3, 5, 7), (2, 64, 4, 64), (1, 1, 1, 1), (0, 3, 4, 4)):
        x = empty_map(*shape)
        assert x.shape == shape and x.dtype == torch.float32 and x.stride(3) == 1
        assert x.stride(2) >= shape[3] + ROOM and x.stride(1) >= x.stride(2) * shape[2]


def test_pictures_that_nothing_reaches_over_are_contiguous():
    assert empty_map(2, 3, 7, 32, reach=0).is_contiguous()
    assert not empty_map(2, 3, 7, 32, reach=16).is_contiguous()
    assert not empty_map(2, 64, 7, 32, reach=0).is_contiguous()


def test_a_map_is_copied_only_if_reading_beyond_its_last_row_would_leave_its_memory():
    exact, roomy = torch.rand(1, 2, 4, 24), torch.rand(1, 3, 4, 24)[:, :2]
    assert readable_beyond(exact, reach=0) is exact
    assert readable_beyond(roomy) is roomy
    for x in (exact, torch.rand(1, 2, 24, 4).mT):
        copy = readable_beyond(x, reach=8)
        assert copy.data_ptr() != x.data_ptr() and torch.equal(copy, x)


def test_an_output_is_made_contiguous_in_memory_that_is_kept():
    strided = torch.rand(2, 8, 5, 24)[..., :17]
    copy = adjacent(strided)
    assert copy.is_contiguous() and torch.equal(copy, strided)
    address = copy.data_ptr()
    del copy
    gc.collect()
    assert adjacent(strided).data_ptr() == address
    same, wide = torch.rand(3, 4), torch.rand(3, 8, dtype=torch.float64)[:, :4]
    assert adjacent(same) is same and torch.equal(adjacent(wide), wide) and adjacent(wide).dtype == torch.float64
