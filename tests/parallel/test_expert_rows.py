"""Rows moved by index, and the experts chosen for them, against what plain indexing and sorting give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.parallel.experts import rows
from mm01_jax.parallel.experts.router import largest
from mm01_jax.parallel.experts.rows import move_rows, sum_rows

N, A, R, D = 13, 2, 31, 6  # R beyond N * A: rows that nothing fills


@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
    """On a GPU rows of 16-bit numbers move as words of 32 bits."""
    monkeypatch.setattr(rows.dispatch, "platform", lambda: request.param)


def indices():
    """(source (R,), places (N, A)): every row of N at A places."""
    places = np.random.default_rng(0).permutation(R)[: N * A].reshape(N, A).astype(np.int32)
    source = np.full(R, N, np.int32)
    source[places] = np.arange(N)[:, None]
    return jnp.asarray(source), jnp.asarray(places)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_move_where_the_index_says_and_their_gradient_moves_back(platform, dtype):
    source, places = indices()
    rng = np.random.default_rng(1)
    x, d_out = (jnp.asarray(rng.normal(size=(n, D)), dtype) for n in (N, R))
    out, pull = jax.vjp(lambda x: move_rows(x, source, places), x)
    whole = np.asarray(jnp.concatenate([x, jnp.zeros((1, D), dtype)]), np.float64)
    np.testing.assert_array_equal(np.asarray(out, np.float64), whole[source])
    exact = np.asarray(d_out, np.float64)[places].sum(axis=1)
    np.testing.assert_array_equal(pull(d_out)[0], jnp.asarray(exact, jnp.float32).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_summing_rows_is_the_transpose_of_moving_them(platform, dtype):
    source, places = indices()
    rng = np.random.default_rng(2)
    x, d_out = (jnp.asarray(rng.normal(size=(n, D)), dtype) for n in (R, N))
    out, pull = jax.vjp(lambda x: sum_rows(x, places, source), x)
    moved, pull_moved = jax.vjp(lambda x: move_rows(x, source, places), d_out)
    np.testing.assert_array_equal(out, pull_moved(x)[0])
    np.testing.assert_array_equal(pull(d_out)[0], moved)


def test_the_largest_are_those_of_top_k_also_where_values_are_equal():
    values = jnp.asarray(np.random.default_rng(3).integers(0, 5, (200, 8)), jnp.float32) / 5
    for number in (1, 2, 8):
        np.testing.assert_array_equal(largest(values, number), jax.lax.top_k(values, number)[1])
