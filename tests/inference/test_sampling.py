"""Laws of choosing the next token. Logits by hand, many keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.inference.sampling import Sampling, sample
from tests import small

V = 12
ALL = jnp.ones(V, jnp.bool_)
DRAWS = 4000


@functools.partial(small.unoptimised, static_argnames="sampling")
def draws(logits_V, allowed_V, sampling: Sampling):
    """Tokens of DRAWS keys."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jax.vmap(lambda key: sample(logits_V[None], key, allowed_V, sampling)[0])(keys)


def shares(logits, sampling: Sampling, allowed=ALL) -> np.ndarray:
    return np.bincount(draws(jnp.asarray(logits, jnp.float32), allowed, sampling), minlength=V) / DRAWS


def softmax(logits) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def assert_distribution(found, want):
    """Every share within five standard errors."""
    np.testing.assert_array_less(np.abs(found - want), 5 * np.sqrt(want * (1 - want) / DRAWS) + 1e-9)
    assert not found[want == 0].any()


LOGITS = np.array([0.0, 3.0, 1.0, 2.0, -1.0, 2.5, 0.5, -2.0, 1.5, -3.0, 0.2, 2.2])


def test_temperature_zero_is_the_most_likely_token_whatever_the_key():
    assert shares(LOGITS, Sampling(temperature=0.0))[1] == 1.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_with_the_softmax_of_logits_over_temperature(temperature):
    assert_distribution(shares(LOGITS, Sampling(temperature=temperature)), softmax(LOGITS / temperature))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45, 5e-324])
def test_ever_lower_temperatures_become_greedy_and_never_nan(temperature):
    assert shares(LOGITS - 1000.0, Sampling(temperature=temperature))[1] == 1.0


@pytest.mark.parametrize("k", [1, 2, 5, V, V + 3])
def test_top_k_keeps_the_k_most_likely_in_their_proportions(k):
    kept = np.isin(np.arange(V), np.argsort(-LOGITS)[:k])
    assert_distribution(shares(LOGITS, Sampling(temperature=1.0, top_k=k)), softmax(np.where(kept, LOGITS, -np.inf)))


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.6, 0.9, 1.0])
def test_top_p_keeps_the_smallest_set_that_holds_p(p):
    probability = softmax(LOGITS)
    order = np.argsort(-probability)
    count = np.searchsorted(np.cumsum(probability[order]), p - 1e-12) + 1
    kept = np.isin(np.arange(V), order[:count])
    assert_distribution(shares(LOGITS, Sampling(temperature=1.0, top_p=p)), softmax(np.where(kept, LOGITS, -np.inf)))


def test_top_p_counts_after_top_k():
    """Of two tokens left, 0.62 and 0.38, a half is held by the first alone; of all twelve it would take two."""
    found = shares(LOGITS, Sampling(temperature=1.0, top_k=2, top_p=0.5))
    assert found[1] == 1.0
    assert softmax(LOGITS).max() < 0.5


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=t, top_k=k, top_p=p)
        for t, k, p in [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.5)]
    ],
)
def test_tokens_that_are_not_allowed_are_never_chosen(sampling):
    allowed = jnp.asarray(LOGITS < 2.0)
    found = shares(LOGITS, sampling, allowed)
    assert not found[LOGITS >= 2.0].any()


def test_rows_are_drawn_independently():
    logits = jnp.zeros((64, V), jnp.float32)
    tokens = sample(logits, jax.random.key(1), ALL, Sampling(temperature=1.0))
    assert tokens.dtype == jnp.int32
    assert len(set(np.asarray(tokens).tolist())) > V // 2


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.01}, "top_p=1.01"),
        ({"top_p": float("nan")}, "top_p=nan"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**values)
