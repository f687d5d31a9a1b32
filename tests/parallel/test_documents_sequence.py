"""Documents over sequence shards: their ids are those of the whole row, and none sees another, in either layout."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.inference.scoring import token_loss
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.documents import document_ids
from tests import small
from tests.model import packings
from tests.model.jax_model import compiled, leaf_arrays
from tests.reference.documents import document_numbers

S = 32
CHUNK = 32  # tokens whose logits are held at a time


@pytest.mark.parametrize("shards, layout", [(1, "zigzag"), (2, "contiguous"), (2, "zigzag"), (8, "zigzag")])
def test_document_ids_over_shards_are_the_numbers_of_the_whole_row(shards, layout):
    mesh = MeshConfig(sequence=shards)
    order = sequence_layout.order(S, mesh, layout)
    random = np.random.default_rng(shards)
    segments = np.concatenate([packings.segmentation(random, S) for _ in range(100)])
    segments[0], segments[1, : S - 1], segments[2] = -1, -1, np.arange(S) % 2  # stripes of padding; one token each
    with jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:shards])):
        ids = jax.jit(functools.partial(document_ids, rules=mesh.rules, layout=layout))(segments[:, order])
    np.testing.assert_array_equal(np.asarray(ids)[:, np.argsort(order)], document_numbers(segments))


def evaluate(attention: str, layout: str):
    """batch -> (logits, gradients by path), in the order of the row, of two shards; both mixers."""
    mesh = MeshConfig(sequence=2)
    variant = small.variant(sequence_attention=attention, sequence_layout=layout)
    order = sequence_layout.order(S, mesh, layout)
    devices = sharding.make_mesh(mesh, jax.devices()[:2])

    def loss(model, batch):
        hidden, _, _ = model.forward(model.embed_tokens(batch.tokens), batch.positions, batch.segments)
        return token_loss(model, hidden, batch, CHUNK), model.logits(hidden)

    with small.one_device():
        weights = small.model(variant)
    placed = shardings(jax.eval_shape(lambda: TextModel(*variant, mesh.rules, rngs=nnx.Rngs(0))), devices, mesh.rules)
    model = jax.device_put(jax.device_get(weights), placed)
    differentiated = compiled(jax.grad(loss, has_aux=True))

    def run(batch):
        with jax.set_mesh(devices):
            where = sharding.named(devices, mesh.rules, "batch", "seq")
            arrays = jax.tree.map(lambda array: jax.device_put(array[:, order], where), batch)
            gradient, logits = differentiated(model, arrays)
            return np.asarray(logits)[:, np.argsort(order)], leaf_arrays(gradient)

    return run


def assert_no_leak(attention: str, layout: str, seeds) -> None:
    run = evaluate(attention, layout)
    for seed in seeds:
        batch, places = packings.packed(seed, S)
        before, after = run(batch), run(packings.perturbed(batch, places, seed))
        packings.assert_nothing_else_moved(places, batch.segments >= 0, before, after)


@pytest.mark.parametrize("attention, layout", [("gather", "contiguous"), ("ring", "zigzag")])
def test_perturbing_one_document_changes_nothing_of_the_others_over_two_shards(attention, layout):
    assert_no_leak(attention, layout, range(8))


@pytest.mark.slow
@pytest.mark.parametrize("attention, layout", [("gather", "zigzag"), ("ring", "contiguous"), ("ring", "zigzag")])
def test_no_leak_over_two_shards_in_100_more_packings(attention, layout):
    assert_no_leak(attention, layout, range(100, 200))
