"""Laws of the stacks of leaves, and of the grid of files and blocks for any shape and any even sharding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import text_01
from mm01_jax.checkpoint import Checkpoints, disk_grid, open_checkpoint
from mm01_jax.checkpoint.manifest import Leaf
from mm01_jax.config import MESH_AXES, MeshConfig, VisionConfig
from mm01_jax.model.abstract import abstract_model
from mm01_jax.model.layers import param
from mm01_jax.train.step import abstract_state


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
    assert names == list(disk_grid.file_names("a/b", bounds, file)) and len(set(names)) == len(names)


def by_path(path: str) -> int:
    """The rule of checkpoints written before weights were asked: it must never give another number than they do."""
    keys = path.split("/")
    if "blocks" in keys:
        return 1
    if "stacks" not in keys:
        return 0
    return 3 if keys[-2] == "experts" and keys[-1] in ("gate", "up", "down") else 2


@pytest.mark.parametrize("name", ["text_01", "vl_01", "training"])
def test_weights_say_the_stack_axes_that_checkpoints_on_disk_were_cut_by(name):
    config = text_01.get_config()
    vision = VisionConfig(embed_dim=32, num_layers=3, num_heads=2, mlp_dim=24, image_size=28, patch_size=14)
    mesh = jax.sharding.AbstractMesh((1, 1, 1, 1), MESH_AXES)
    config = dataclasses.replace(config, mesh=MeshConfig())
    trees = {
        "text_01": lambda: abstract_model(config, mesh),
        "vl_01": lambda: abstract_model(dataclasses.replace(config, vision=vision), mesh),
        "training": lambda: abstract_state(config, mesh),
    }
    tree = trees[name]()
    stacks = dict(zip(disk_grid.leaf_paths(tree), disk_grid.leaf_stacks(tree), strict=True))
    assert stacks == {path: by_path(path) for path in stacks}
    assert set(stacks.values()) == ({0, 1, 2, 3} if name == "vl_01" else {0, 2, 3})


class Adapted(nnx.Module):
    """What nobody foresaw: an adapter beside the experts, stacked like them, under names of its own."""

    def __init__(self):
        rngs, zeros = nnx.Rngs(0), lambda key, shape, dtype: jnp.zeros(shape, dtype)
        self.low_rank = param(rngs, (4, 8, 2), ("expert", "embed", None), zeros, stack=(2, 3))
        self.scale = param(rngs, (3, 8), ("layer", "act_embed"), zeros)
        self.table = param(rngs, (4, 8), ("vocab", "embed"), zeros)


def test_a_new_leaf_is_cut_and_saved_by_the_axes_of_its_own_param_line(tmp_path):
    model = Adapted()
    state = {"model": model, "opt_state": optax.adam(1e-3).init(model), "step": jnp.zeros((), jnp.int32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"config": {}})
        checkpoints.wait()
    stored = open_checkpoint(tmp_path, prefix="").leaves
    for tree in ("model", "opt_state/0/mu", "opt_state/0/nu"):
        assert [stored[f"{tree}/{name}"].stack for name in ("low_rank", "scale", "table")] == [3, 1, 0]
    assert stored["model/low_rank"].lanes.shape == (2, 3, 4, 4)  # a digest of four words for each expert's matrix
    assert stored["step"].stack == stored["opt_state/0/count"].stack == 0


@pytest.mark.parametrize("shapes", [((2**26, 16), (1, 1), (1, 1)), ((2**26, 16), (2**26, 16), (1, 1))])
def test_a_leaf_of_more_files_or_blocks_than_any_has_is_refused(shapes):
    shape, file, block = shapes
    with pytest.raises(ValueError, match="at most 1,048,576 files of 65,536 blocks"):
        Leaf(shape=shape, dtype="float32", stack=0, file=file, block=block).check_grid()


@settings(max_examples=300, deadline=None)
@given(leaves(), st.sampled_from((16, 100, 1000)))
def test_blocks_that_were_cut_are_known_to_be(leaf, block_bytes):
    shape, shard, stack, itemsize = leaf
    before, disk_grid.BLOCK_BYTES = disk_grid.BLOCK_BYTES, block_bytes
    try:
        block = disk_grid.file_grid(shape, shard, stack, itemsize)[1]
        assert block == (1,) * stack + shard[stack:] or disk_grid.is_cut(shape, block, stack, itemsize)
    finally:
        disk_grid.BLOCK_BYTES = before


def test_blocks_of_the_released_model_on_large_meshes_and_of_an_odd_vocabulary_are_none_too_many():
    config = dataclasses.replace(text_01.get_config(), mesh=MeshConfig())
    tree = abstract_state(config, jax.sharding.AbstractMesh((1, 1, 1, 1), MESH_AXES))
    for ways in ((1, 1), (8, 8), (64, 8), (8, 512)):  # of the last two axes of a leaf, or of the one that it has
        small = files = nbytes = 0
        for x, stack in zip(jax.tree.leaves(tree), disk_grid.leaf_stacks(tree), strict=True):
            shard = [1] * stack + list(x.shape[stack:])
            for axis, parts in zip(range(len(shard) - 1, stack - 1, -1), ways, strict=False):
                shard[axis] //= parts if shard[axis] % parts == 0 else 1
            file, block = disk_grid.file_grid(x.shape, tuple(shard), stack, x.dtype.itemsize)
            leaf = Leaf(shape=x.shape, dtype=x.dtype.name, stack=stack, file=file, block=block)
            small, files = small + leaf.small_blocks, files + leaf.small_files
            nbytes += leaf.nbytes
        assert max(files, small) < nbytes / disk_grid.SMALL_BYTES / 100
    shape = (151_643, 128)
    file, block = disk_grid.file_grid(shape, shape, 0, 4)
    odd = Leaf(shape=shape, dtype="float32", stack=0, file=file, block=block)
    assert block == (1, 128) and odd.small_blocks == 0
