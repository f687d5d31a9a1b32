"""Laws of lightning attention with its rows over a sequence axis: what enters it, and what it leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.documents import document_ids
from mm01_jax.parallel.lightning import lightning_attention
from tests.parallel.mesh_model import LENGTH, ROWS, batch
from tests.slow import slow_but

N, H = 2, 8
SLOPES = np.array([0.3, 0.002], np.float32)


@functools.cache
def results(shards: int, name: str, *, state: bool) -> dict[str, np.ndarray]:
    """out, the last state and gradients, of packed rows (`mesh_model.DOCUMENTS`) with or without an entering state."""
    mesh = MeshConfig(sequence=shards)
    order = sequence_layout.order(LENGTH, mesh, name)
    rng = np.random.default_rng(1)
    q, k, v, d_out = rng.normal(size=(4, ROWS, LENGTH, N, H)).astype(np.float32)
    entering, d_last = rng.normal(size=(2, ROWS, N, H, H)).astype(np.float32)

    def run(q, k, v, entering):
        before = entering if state else None
        segments = jnp.asarray(batch().segments[:, order])
        documents = document_ids(segments, rules=mesh.rules, layout=name)
        out, last = lightning_attention(q, k, v, jnp.asarray(SLOPES), before, documents, rules=mesh.rules, layout=name)
        return jnp.sum(out * d_out[:, order]) + jnp.sum(last * d_last), (out, last)

    with jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:shards])):
        step = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))
        (_, (out, last)), gradients = jax.device_get(step(*(x[:, order] for x in (q, k, v)), entering))
    back = np.argsort(order)
    found = {"out": out[:, back], "last": last, "d_entering": gradients[3]}
    return found | {name: x[:, back] for name, x in zip(("d_q", "d_k", "d_v"), gradients, strict=False)}


@pytest.mark.parametrize(
    "shards, name, state",
    slow_but(
        [(2, "zigzag", False), (4, "contiguous", True), (8, "zigzag", True)],
        [
            (shards, name, state)
            for shards, name in ((2, "zigzag"), (4, "contiguous"), (8, "zigzag"))
            for state in (False, True)
        ],
    ),
)
def test_rows_over_shards_with_or_without_a_state_that_enters_equal_one_device(shards, name, state):
    want = results(1, "contiguous", state=state)
    for kind, found in results(shards, name, state=state).items():
        # Sums of up to 32 products of size 1 and decays below 1, in another order.
        error = np.abs(found - want[kind]).max() / max(np.abs(want[kind]).max(), 1e-30)
        assert error <= 32 * np.finfo(np.float32).eps, (kind, error)
