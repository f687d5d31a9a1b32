"""A lightning layer's inward half as one: what it gives on a mesh, and where it has a place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.parallel import lightning_prefill
from mm01_jax.parallel.lightning import lightning_attention
from pallas_kernels.int8 import Int8

B, S, D, N, H = 2, 40, 24, 2, 8


def _arrays():
    rng = np.random.default_rng(0)
    shapes = (B, S, D), (D, N, 3, H), (B, N, H, H)
    x, qkv, state = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    documents = jnp.asarray(np.searchsorted([11, 30], np.arange(S), side="right"), jnp.int32).at[35:].set(-1)
    return x, qkv, jnp.asarray([0.5, 0.01], jnp.float32), state, jnp.broadcast_to(documents, (B, S))


def _in_turn(x, qkv, slope, state, documents, rules):
    q, k, v = jnp.moveaxis(jax.nn.silu(jnp.einsum("bsd,dnch->bsnch", x, qkv, precision="highest")), 3, 0)
    return lightning_attention(q, k, v, slope, state, documents, rules=rules)


def _on(mesh: MeshConfig):
    return jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[: mesh.size(("data", "expert", "tensor", "sequence"))]))


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, tensor=2)], ids=["one", "many"])
def test_the_inward_half_equals_product_silu_and_attention_in_turn(mesh):
    with _on(mesh):
        together = jax.jit(lambda *a: lightning_prefill.projected(*a, rules=mesh.rules))(*_arrays())
        in_turn = jax.jit(lambda *a: _in_turn(*a, mesh.rules))(*_arrays())
    for ours, expected in zip(together, in_turn, strict=True):
        # The same expression, of which two compilations sum in two orders: D + S + H terms, three factors.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=3 * (D + S + H) * 2.0**-24 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("mesh", "rows", "pays"),
    [
        (MeshConfig(), 1024, True),
        (MeshConfig(tensor=2), 1024, True),
        (MeshConfig(data=2), 1024, False),
        (MeshConfig(sequence=2), 2048, False),
    ],
    ids=["one", "heads cut", "few rows a device", "time cut"],
)
def test_it_pays_for_many_rows_with_time_uncut(mesh, rows, pays, monkeypatch):
    monkeypatch.setattr(lightning_prefill.dispatch, "why_not_hopper", lambda: None)
    x, weight = jnp.zeros((2, rows // 2, 8), jnp.bfloat16), jnp.zeros((8, N, 3, H), jnp.bfloat16)
    with _on(mesh):
        assert lightning_prefill.pays(x, weight, mesh.rules) is pays


def test_it_pays_for_bfloat16_on_hopper_alone(monkeypatch):
    x, weight, rules = jnp.zeros((1, 1024, 8), jnp.bfloat16), jnp.zeros((8, N, 3, H), jnp.bfloat16), MeshConfig().rules
    with _on(MeshConfig()):
        assert not lightning_prefill.pays(x, weight, rules), "elsewhere"
        monkeypatch.setattr(lightning_prefill.dispatch, "why_not_hopper", lambda: None)
        assert lightning_prefill.pays(x, weight, rules)
        assert not lightning_prefill.pays(x.astype(jnp.float32), weight, rules)
        assert not lightning_prefill.pays(x, Int8(weight.astype(jnp.int8), weight[0]), rules)
