"""Laws of softmax attention in plain XLA, and of its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.softmax_attention import reference, softmax_attention, xla
from tests.kernels import softmax_cases as cases


@pytest.mark.parametrize("name", cases.CASES)
def test_softmax_xla_equals_float64_with_gradients(name, monkeypatch):
    monkeypatch.setattr(xla, "QUERY_BLOCK", 64)
    *shape, query_tags, key_tags = cases.CASES[name]
    q, k, v, d_out = cases.arrays(*shape, dtype=jnp.float32, B=len(query_tags[0]))
    tags = {"query_tags": query_tags, "key_tags": key_tags}
    out, pull = jax.vjp(lambda *qkv: softmax_attention(*qkv, **tags, implementation="xla"), q, k, v)
    exact = reference.attend(q, k, v, query_tags, key_tags)[0]
    exact = exact, *reference.attend_gradient(q, k, v, query_tags, key_tags, d_out)
    for got, e in zip((out, *pull(d_out)), exact, strict=True):
        # Sums of a few hundred float32 products, and exponentials of logits up to 10, which are off by 2^-21.
        np.testing.assert_allclose(got, e, rtol=0, atol=2.0**-19 * max(1.0, np.abs(e).max()))


def test_softmax_xla_makes_no_mask_outside_of_the_layer_that_needs_it(monkeypatch):
    """In a scan over layers: masks depend on no layer, and would be made for all blocks before the first."""
    monkeypatch.setattr(xla, "QUERY_BLOCK", block := 16)
    B, S, N, H = 2, 128, 2, 8
    tags = tuple(jnp.broadcast_to(x, (B, S)) for x in cases.one_document(0, S))

    def loss(weights, x):
        @jax.checkpoint
        def layer(x, weight):
            q = x * weight
            return softmax_attention(q, q, q, query_tags=tags, key_tags=tags, implementation="xla"), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.ones(3), jnp.ones((B, S, N, H))).jaxpr
    assert 0 < _largest_mask(jaxpr) <= B * N * block * S


def _largest_mask(jaxpr) -> int:
    largest = 0
    for eqn in jaxpr.eqns:
        largest = max([largest, *(var.aval.size for var in eqn.outvars if var.aval.dtype == bool)])
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    largest = max(largest, _largest_mask(inner))
    return largest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": (1, 8, 3, 16)}, r"key must be \(B=1, T, K, H=16\) in float32, K a divisor of the 4 query heads"),
        ({"value": (1, 9, 2, 16)}, r"value must be as key, float32\[1, 8, 2, 16\], got float32\[1, 9, 2, 16\]"),
        ({"key_tags": (1, 7)}, r"key_tags must be \(positions, documents\), int32\[1, 8\] each"),
    ],
)
def test_softmax_wrong_argument_is_named(change, message):
    shapes = {"query": (1, 4, 4, 16), "key": (1, 8, 2, 16), "value": (1, 8, 2, 16)} | {"query_tags": (1, 4)}
    shapes |= {"key_tags": (1, 8)} | change
    q, k, v = (jnp.zeros(shapes[name]) for name in ("query", "key", "value"))
    tags = {name: (jnp.zeros(shapes[name], jnp.int32),) * 2 for name in ("query_tags", "key_tags")}
    with pytest.raises(ValueError, match=message):
        softmax_attention(q, k, v, **tags)
