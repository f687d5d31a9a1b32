"""Lightning's gated norm on a mesh: the one-pass form where every device has all heads, and only there."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.model.layers import rms_norm
from mm01_jax.parallel import lightning

B, S, N, H, EPS = 4, 6, 2, 8, 1e-6


def _arrays():
    rng = np.random.default_rng(0)
    shapes = (B, S, N, H), (B, S, N, H), (N, H)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _passes(f, out, gate, weight):
    y, pull = jax.vjp(f, out, gate, weight)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))


def _plain(out, gate, weight):
    return jax.nn.sigmoid(gate) * rms_norm(out, weight, EPS, num_axes=2)


def _on(mesh: MeshConfig):
    return jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[: mesh.size(("data", "expert", "tensor", "sequence"))]))


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, expert=2, sequence=2)], ids=["one", "many"])
def test_one_pass_equals_norm_then_gate_with_gradients(mesh, monkeypatch):
    # As for a GPU; the operation then takes the form that runs here.
    monkeypatch.setattr(lightning, "dispatch", types.SimpleNamespace(platform=lambda: "gpu"))
    arrays = _arrays()
    with _on(mesh):
        fused = jax.jit(lambda *a: _passes(lambda *b: lightning.gated_norm(*b, EPS, rules=mesh.rules), *a))(*arrays)
    for a, b in zip(fused, _passes(_plain, *arrays), strict=True):
        # Sums over a row, or for the weight over all rows, and some twenty roundings.
        np.testing.assert_allclose(a, b, rtol=0, atol=(B * S + N * H + 20) * 2.0**-24 * np.abs(b).max())


@pytest.mark.parametrize(
    ("mesh", "platform", "length"),
    [(MeshConfig(tensor=2), "gpu", S), (MeshConfig(), "cpu", S), (MeshConfig(), "gpu", 1)],
    ids=["heads are cut", "on a CPU", "decode"],
)
def test_no_one_pass_form_where_it_has_no_place(mesh, platform, length, monkeypatch):
    monkeypatch.setattr(lightning, "dispatch", types.SimpleNamespace(platform=lambda: platform))
    out, gate, weight = _arrays()
    with _on(mesh):
        assert lightning.gated_norm(out[:, :length], gate[:, :length], weight, EPS, rules=mesh.rules) is None
