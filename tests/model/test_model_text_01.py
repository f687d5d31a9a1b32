"""The released model as a config: its counts, and that its program does not grow with depth. Nothing is computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import text_01
from mm01_jax.config import Config, MeshConfig, Rules
from mm01_jax.data.batch import Batch
from mm01_jax.model import flops
from mm01_jax.model.decoder import TextModel
from mm01_jax.train import step
from tests import small
from tests.model.jax_model import leaf_path


@pytest.fixture(scope="module")
def leaves() -> dict[str, int]:
    """Path -> number of weights."""
    config = text_01.get_config()
    shapes = jax.eval_shape(lambda: TextModel(config.model, config.compute, Rules(), rngs=nnx.Rngs(0)))
    flat = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {leaf_path(path): weight.size for path, weight in flat}


def test_text_01_has_the_released_number_of_parameters(leaves):
    assert sum(leaves.values()) == 456_089_655_296


def test_text_01_activates_the_paper_s_45_9_billion_for_a_token(leaves):
    model = text_01.get_config().model
    share = model.num_experts_per_token / model.num_experts
    routed = ("experts/gate", "experts/up", "experts/down")
    activated = {
        path: size * share if path.endswith(routed) else size
        for path, size in leaves.items()
        if path not in ("embed", "head")  # as the paper counts
    }
    assert sum(activated.values()) == 45_944_920_064
    norms = sum(size for path, size in leaves.items() if path.endswith("norm"))
    assert flops.active_weights(model) == 45_944_920_064 - norms + leaves["head"]


def lowered_size(config: Config) -> int:
    """Characters of the train step's program before XLA."""
    with small.one_device():
        state = jax.eval_shape(functools.partial(step.init_state, config), jax.random.key(0))
        shape = (config.train.batch_size, config.train.sequence_length)
        ids = jax.ShapeDtypeStruct(shape, jnp.int32)
        batch = Batch(ids, ids, ids, ids, weights=jax.ShapeDtypeStruct(shape, jnp.float32))
        return len(jax.jit(functools.partial(step.train_step, config=config)).lower(state, batch).as_text())


def test_train_step_of_80_layers_lowers_to_at_most_a_tenth_more_than_that_of_16():
    config = text_01.get_config()
    train = dataclasses.replace(config.train, batch_size=1, sequence_length=1024)
    config = dataclasses.replace(config, mesh=MeshConfig(), train=train)
    shallow = dataclasses.replace(config, model=dataclasses.replace(config.model, num_periods=2))
    deep, short = lowered_size(config), lowered_size(shallow)
    assert deep <= 1.1 * short, f"{deep:,} characters at 80 layers, {short:,} at 16"
