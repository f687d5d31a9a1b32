"""The chunked cross-entropy's own gradient against float64 and against the one that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.config import MeshConfig, Rules
from mm01_jax.parallel import vocabulary
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


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Each row's largest logit and sum in one reduction of pairs."""
    monkeypatch.setattr(vocabulary, "_in_two_passes", vocabulary._in_one_pass)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cross_entropy_gradients_are_no_worse_than_derived_ones(dtype):
    check_gradients(dtype)


@pytest.mark.parametrize("shards", [1, 2])
def test_so_they_are_where_a_row_is_summed_in_one_pass(as_on_a_gpu, shards):
    with jax.set_mesh(sharding.make_mesh(MeshConfig(tensor=shards), jax.devices()[:shards])):
        check_gradients("float32")


def test_one_pass_over_a_row_finds_what_two_find_also_far_from_zero():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(7, 1001)) * 30 + rng.choice([-1e30, -200, 0, 1e4], size=(7, 1)), jnp.float32)
    for one, two in zip(vocabulary._in_one_pass(logits), vocabulary._in_two_passes(logits), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_shows_in_one_pass(value):
    peak, total = vocabulary._in_one_pass(jnp.zeros((2, 9), jnp.float32).at[0, 4].set(value))
    assert not np.isfinite(peak[0] + jnp.log(total[0]))
    assert (peak[1], total[1]) == (0.0, 9.0)


def check_gradients(dtype):
    """Loss and gradients of the current mesh against float64, beside what JAX derives."""
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
