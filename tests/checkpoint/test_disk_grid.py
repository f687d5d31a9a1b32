"""Laws of the grid of files and blocks, for any shape and any even sharding."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mm01_jax.checkpoint import disk_grid


@st.composite
def leaves(draw):
    """(shape, shape of a device's shard, stack axes, bytes of an element)."""
    rank = draw(st.integers(0, 5))
    shard = [draw(st.sampled_from((1, 2, 3, 7, 8, 12, 64))) for _ in range(rank)]
    shape = [n * draw(st.sampled_from((1, 2, 4))) for n in shard]
    return tuple(shape), tuple(shard), draw(st.integers(0, rank)), draw(st.sampled_from((1, 2, 4)))


@settings(max_examples=200, deadline=None)
@given(leaves(), st.sampled_from((16, 1000, 2**21)), st.sampled_from((64, 5000, 2**27)))
def test_files_tile_each_shard_and_blocks_never_span_two_chunks(leaf, block_bytes, file_bytes):
    shape, shard, stack, itemsize = leaf
    before = disk_grid.BLOCK_BYTES, disk_grid.FILE_BYTES
    disk_grid.BLOCK_BYTES, disk_grid.FILE_BYTES = block_bytes, max(file_bytes, block_bytes)
    try:
        file, block = disk_grid.file_grid(shape, shard, stack, itemsize)
    finally:
        disk_grid.BLOCK_BYTES, disk_grid.FILE_BYTES = before
    assert block[:stack] == (1,) * stack
    assert all(s % f == 0 and f % b == 0 for s, f, b in zip(shard, file, block, strict=True))
    assert math.prod(block) * itemsize <= block_bytes
    assert math.prod(file) * itemsize <= max(file_bytes, block_bytes)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_parts_of_a_box_cover_it_once_and_name_one_file_each(data):
    file = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    shape = tuple(f * data.draw(st.integers(1, 3)) for f in file)
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    bounds = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True))
    seen, names = np.zeros(shape, int), []
    for box in disk_grid.boxes(bounds, file):
        seen[box] += 1
        names += disk_grid.file_names("a/b", box, file)
    expected = np.zeros(shape, int)
    expected[bounds] = 1
    np.testing.assert_array_equal(seen, expected)
    assert names == disk_grid.file_names("a/b", bounds, file) and len(set(names)) == len(names)
