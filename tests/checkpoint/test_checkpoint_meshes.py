"""A state keeps its bits and its digests across meshes."""

import itertools

import jax
import numpy as np
import pytest

from mm01_jax import checkpoint
from tests.checkpoint.standin import META, abstract, bits, make_mesh, make_state

MESHES = ((1, 1, 1, 1), (8, 1, 1, 1), (2, 4, 1, 1), (1, 2, 2, 2), (2, 1, 4, 1), (1, 4, 1, 2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One and the same state saved from each mesh: mesh -> work directory."""
    directories = {}
    for mesh in MESHES:
        directories[mesh] = tmp_path_factory.mktemp("run")
        with checkpoint.Checkpoints(directories[mesh]) as checkpoints:
            checkpoints.save(5, make_state(make_mesh(*mesh), seed=5), META)
    return directories


@pytest.mark.parametrize(("source", "target"), list(itertools.product(MESHES, MESHES)))
def test_a_state_saved_on_one_mesh_is_restored_bit_for_bit_on_another(saved, source, target):
    expected = make_state(make_mesh(*target), seed=5)
    with checkpoint.Checkpoints(saved[source]) as checkpoints:
        restored = checkpoints.restore_latest(abstract(expected))
    assert bits(restored.state) == bits(expected)
    for got, want in zip(jax.tree.leaves(restored.state), jax.tree.leaves(expected), strict=True):
        assert got.sharding == want.sharding and got.dtype == want.dtype


def test_the_digest_of_a_state_is_equal_on_every_mesh(saved):
    trees = [checkpoint.open_checkpoint(path, prefix="").manifest.tree_sha256() for path in saved.values()]
    assert len(set(trees)) == 1


def test_one_chunk_read_alone_equals_that_slice_of_the_array(saved):
    gate = np.asarray(make_state(make_mesh(1, 1, 1, 1), seed=5).model.stacks[0].experts.gate[...])
    for path in saved.values():
        opened = checkpoint.open_checkpoint(path)
        assert opened.leaves["stacks/0/experts/gate"].stack == 3
        for index in np.ndindex(gate.shape[:3]):
            assert opened.read("stacks/0/experts/gate", index).tobytes() == gate[index].tobytes()


def test_saving_and_restoring_work_inside_a_mesh_context(tmp_path):
    mesh = make_mesh(1, 2, 2, 2)
    state = make_state(mesh, seed=1)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META)
        assert bits(checkpoints.restore_latest(abstract(state)).state) == bits(state)
        weights = checkpoint.load_weights(tmp_path, abstract(state.model))
    assert bits(weights) == bits(state.model)
