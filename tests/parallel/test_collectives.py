"""Compiled programs hold the collectives that docs/sharding.md names, over those axes, and no other."""

import functools
import math

import jax
import pytest
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import MESH_AXES, MeshConfig
from mm01_jax.data.batch import Batch
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings
from tests.parallel import hlo
from tests.parallel.mesh_model import MODEL, total_loss
from tests.slow import slow_but
from tests.small import Variant

ROWS, LENGTH, CHUNK = 8, 44, 16  # no other dim is 44, nor any product of dims that may be flattened into one
VARIANT = Variant(MODEL).replace(vocab_size=56, embed_dim=40, expert_dim=24)


@functools.cache
def compiled_text(mesh: MeshConfig, attention: str, layout: str = "contiguous") -> str:
    lowered = lowered_gradient(mesh, VARIANT.replace(sequence_attention=attention, sequence_layout=layout))
    return lowered.compile(compiler_options={"xla_backend_optimization_level": "0"}).as_text()


def lowered_gradient(mesh: MeshConfig, variant: Variant) -> jax.stages.Lowered:
    """Forward and backward of the model with every term of the loss."""
    size = mesh.data * mesh.expert * mesh.tensor * mesh.sequence
    devices = sharding.make_mesh(mesh, jax.devices()[:size])
    with jax.set_mesh(devices):
        empty = jax.eval_shape(lambda: TextModel(*variant, mesh.rules, rngs=nnx.Rngs(params=0)))
        placed = shardings(empty, devices, mesh.rules)
        model = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), empty, placed)
        where = sharding.named(devices, mesh.rules, "batch", "seq")
        ids, weights = (jax.ShapeDtypeStruct((ROWS, LENGTH), dtype, sharding=where) for dtype in ("int32", "float32"))
        batch = Batch(tokens=ids, targets=ids, positions=ids, segments=ids, weights=weights)
        step = jax.jit(jax.grad(lambda model, batch: total_loss(model, batch, logits=False)[0]), out_shardings=placed)
        return step.lower(model, batch)


# What crosses which axis, and why (docs/sharding.md).
WEIGHTS = {("all-gather", ("data",))}  # fully sharded weights, gathered for use
TENSOR = {
    ("all-reduce", ("tensor",)),  # matmuls over sharded heads and width, the vocabulary's sums
    ("all-gather", ("tensor",)),  # rows and results of the experts, whole again
    ("reduce-scatter", ("tensor",)),  # results of the experts, summed into slices
}
EXPERT = {("all-to-all", ("expert",))}
STATES = {
    ("all-gather", ("sequence",)),  # lightning states; keys and values where they are not in a ring
    ("reduce-scatter", ("sequence",)),  # their gradients
}
RING = {("collective-permute", ("sequence",))}


def sums(*axes: tuple[str, ...]) -> set:
    """Gradients of weights, the loss and router statistics, summed over what shards tokens."""
    return {("all-reduce", axis) for axis in axes}


CASES = {
    "experts over expert and tensor": (
        MeshConfig(data=2, expert=2, tensor=2),
        "gather",
        WEIGHTS | TENSOR | EXPERT | sums(("data",), ("data", "expert")),
    ),
    "ring": (MeshConfig(tensor=2, sequence=4), "ring", TENSOR | STATES | RING | sums(("sequence",))),
    "gathered keys": (MeshConfig(tensor=2, sequence=4), "gather", TENSOR | STATES | sums(("sequence",))),
}


@pytest.mark.parametrize("case", CASES)
def test_collectives_are_those_of_the_table_and_no_other(case):
    mesh, attention, expected = CASES[case]
    found = hlo.collectives(compiled_text(mesh, attention), {axis: getattr(mesh, axis) for axis in MESH_AXES})
    assert found == expected


@pytest.mark.parametrize("case", CASES)
def test_no_array_holds_all_positions_and_the_vocabulary(case):
    mesh, attention, _ = CASES[case]
    vocabulary = VARIANT.config.vocab_size // mesh.tensor
    largest = vocabulary * max(VARIANT.config.embed_dim, CHUNK)  # the head's own weight, or the logits of one chunk
    held = [shape for shape in hlo.shapes(compiled_text(mesh, attention)) if vocabulary in shape]
    assert held
    assert not [shape for shape in held if math.prod(shape) > largest]


@pytest.mark.parametrize("case", ["ring", "gathered keys"])
def test_nothing_but_gathered_keys_and_values_spans_the_sequence(case):
    mesh, attention, _ = CASES[case]
    own, num_keys = LENGTH // mesh.sequence, ROWS * LENGTH * VARIANT.config.num_kv_heads // mesh.tensor
    all_shapes = hlo.shapes(compiled_text(mesh, attention))
    # As it is, or as one stripe of each shard, stacked.
    spanning = [shape for shape in all_shapes if LENGTH in shape or (shape[0] == mesh.sequence and own in shape)]
    assert bool(spanning) == (attention == "gather")
    for shape in spanning:
        assert math.prod(shape) <= num_keys * VARIANT.config.head_dim, shape


ZIGZAG = {"ring": RING, "gather": set()}


@pytest.mark.parametrize("attention", slow_but(["ring"], ZIGZAG))
def test_zigzag_sends_over_the_sequence_what_contiguous_does(attention):
    mesh = MeshConfig(sequence=2)  # four stripes of 11
    found = hlo.collectives(compiled_text(mesh, attention, "zigzag"), {axis: getattr(mesh, axis) for axis in MESH_AXES})
    assert found == STATES | ZIGZAG[attention] | sums(("sequence",))
