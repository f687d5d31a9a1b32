"""The chunked cross-entropy's own gradient against float64 and against the one that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.config import Rules
from mm01_jax.parallel.vocabulary import cross_entropy
from tests import small

B, S, D, V, CHUNK = 2, 20, 32, 96, 16  # two whole chunks and a part of one


@pytest.fixture(autouse=True)
def one_device():
    with small.one_device():
        yield


def arguments(dtype):
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((B, S, D), (D, V)))
    targets = jnp.asarray(rng.integers(0, V, (B, S)), jnp.int32)
    return hidden, head, targets, jnp.asarray(rng.random((B, S)), jnp.float32)


def exact_gradients(hidden, head, targets, weights):
    """Of hidden, head and weights, NumPy float64."""
    hidden, head, weights = (np.asarray(x, np.float64) for x in (hidden, head, weights))
    logits = hidden @ head
    lse = np.log(np.exp(logits).sum(-1))
    hit = np.eye(V)[np.asarray(targets)]
    d_logits = (np.exp(logits - lse[..., None]) - hit) * weights[..., None]
    return d_logits @ head.T, np.einsum("bsd,bsv->dv", hidden, d_logits), lse - (logits * hit).sum(-1)


def derived(hidden, head, targets, weights):
    """What JAX differentiates, the logits whole."""
    logits = jnp.einsum("bsd,dv->bsv", hidden, head, precision="highest", preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - picked))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cross_entropy_gradients_are_no_worse_than_derived_ones(dtype):
    x = arguments(dtype)

    def ours(hidden, head, targets, weights):
        return cross_entropy(hidden, head, targets, weights, chunk=CHUNK, rules=Rules())

    loss, got = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 3)))(*x)
    plain_loss, plain = jax.jit(jax.value_and_grad(derived, argnums=(0, 1, 3)))(*x)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    for ours, theirs, exact in zip(got, plain, exact_gradients(*x), strict=True):
        assert ours.dtype == theirs.dtype
        error, allowed = (np.abs(np.asarray(a, np.float64) - exact).max() for a in (ours, theirs))
        assert error <= 2 * allowed
