"""Softmax attention over gathered keys in one call, as on GPUs whose kernel passes over what its tags hide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, MeshConfig
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.documents import document_ids
from mm01_jax.parallel.softmax import gathered
from mm01_jax.parallel.softmax.attention import self_attention
from tests.parallel.mesh_model import LENGTH, ROWS, batch

N, K, H = 4, 2, 8


@functools.cache
def results(shards: int, layout: str, *, at_once: bool, dtype: str = "float32") -> list[np.ndarray]:
    """out, d query, d key, d value of packed rows (`mesh_model.DOCUMENTS`)."""
    mesh = MeshConfig(sequence=shards)
    order = sequence_layout.order(LENGTH, mesh, layout)
    rng = np.random.default_rng(2)
    query, d_out = rng.normal(size=(2, ROWS, LENGTH, N, H)).astype(dtype)[:, :, order]
    key, value = rng.normal(size=(2, ROWS, LENGTH, K, H)).astype(dtype)[:, :, order]
    compute = ComputeConfig(sequence_attention="gather")

    def run(query, key, value):
        rows = batch()
        documents = document_ids(jnp.asarray(rows.segments[:, order]), rules=mesh.rules, layout=layout)
        tags = jnp.asarray(rows.positions[:, order]), documents
        out = self_attention(query, key, value, tags, compute=compute, rules=mesh.rules, layout=layout)
        return jnp.sum(out * d_out), out

    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:shards])):
        patch.setattr(gathered, "passes_over_what_is_hidden", lambda *_: at_once)
        step = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))
        (_, out), gradients = jax.device_get(step(query, key, value))
    return [x[:, np.argsort(order)] for x in (out, *gradients)]


@pytest.mark.parametrize("shards, layout", [(2, "zigzag"), (4, "contiguous")])
def test_one_call_is_as_near_to_float64_as_one_device(shards, layout):
    with jax.enable_x64(True):
        exact = results(1, "contiguous", at_once=False, dtype="float64")
    alone = results(1, "contiguous", at_once=False)
    for want, one, found in zip(exact, alone, results(shards, layout, at_once=True), strict=True):
        allowed = 2 * np.abs(one - want).max() + np.finfo(np.float32).eps * np.abs(want).max()
        assert np.abs(found - want).max() <= allowed
