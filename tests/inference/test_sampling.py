"""Laws of choosing the next token. Logits by hand, many keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.inference import sampling
from mm01_jax.inference.sampling import Sampling
from tests import small

V = 12
ALL = jnp.ones(V, jnp.bool_)
DRAWS = 4000


@small.unoptimised
def chosen(logits_BV, settings, history, number_B, allowed_V):
    return sampling.sample(logits_BV, settings, history, number_B, allowed_V)


def draws(logits_V, allowed_V, settings: Sampling) -> np.ndarray:
    """The first tokens of DRAWS seeds."""
    logits = jnp.broadcast_to(logits_V, (DRAWS, V))
    row = jax.tree.map(lambda x: jnp.broadcast_to(x, (DRAWS, *x.shape[1:])), sampling.rows([settings], [0]))
    rows = row._replace(seed_B2=np.stack([np.zeros(DRAWS, np.uint32), np.arange(DRAWS, dtype=np.uint32)], axis=1))
    return chosen(logits, rows, sampling.empty_history(DRAWS, V), jnp.zeros(DRAWS, jnp.int32), allowed_V)


def shares(logits, settings: Sampling, allowed=ALL) -> np.ndarray:
    return np.bincount(draws(jnp.asarray(logits, jnp.float32), allowed, settings), minlength=V) / DRAWS


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


def test_rows_that_are_plain_need_no_settings():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, V)), jnp.float32)
    plain, others = Sampling(temperature=0.0, top_k=2), Sampling(temperature=0.0, logit_bias={3: 9.0})
    assert sampling.are_plain([plain, plain])
    for other in (others, Sampling(), Sampling(temperature=0.0, presence_penalty=0.5)):
        assert not sampling.are_plain([plain, other])
    settings = jax.tree.map(jnp.asarray, sampling.rows([plain] * 4, [0] * 4))
    told = sampling.empty_history(4, V), jnp.zeros(4, jnp.int32), jnp.arange(V) != 7
    assert np.array_equal(chosen(logits, settings, *told), chosen(logits, None, *told))


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


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7, 1.0])
def test_min_p_keeps_what_has_that_part_of_the_likeliest(p):
    kept = softmax(LOGITS) >= p * softmax(LOGITS).max() * (1 - 1e-6)
    assert_distribution(shares(LOGITS, Sampling(temperature=1.0, min_p=p)), softmax(np.where(kept, LOGITS, -np.inf)))


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(temperature=t, top_k=k, top_p=p)
        for t, k, p in [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.5)]
    ],
)
def test_tokens_that_are_not_allowed_are_never_chosen(settings):
    allowed = jnp.asarray(LOGITS < 2.0)
    found = shares(LOGITS, settings, allowed)
    assert not found[LOGITS >= 2.0].any()


REPEATED = np.array([0, 2, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0])  # how often the answer has each id
PROMPTED = np.isin(np.arange(V), [1, 4, 6])


def penalised(settings: Sampling) -> np.ndarray:
    """The formulas, in float64."""
    logits = LOGITS + [settings.logit_bias.get(token, 0.0) for token in range(V)]
    seen, r = PROMPTED | (REPEATED > 0), settings.repetition_penalty
    logits = np.where(seen, np.where(logits > 0, logits / r, logits * r), logits)
    return logits - settings.frequency_penalty * REPEATED - settings.presence_penalty * (REPEATED > 0)


@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"presence_penalty": 1.5},
        {"frequency_penalty": -0.8},
        {"logit_bias": {0: 4.0, 7: -2.0, 11: 1e6}},
        {
            "repetition_penalty": 1.2,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.4,
            "logit_bias": {3: 1.5, 9: 5.0},
            "top_k": 7,
            "top_p": 0.8,
            "min_p": 0.05,
        },
    ],
)
def test_penalties_and_biases_change_logits_as_their_formulas_say(values):
    settings = Sampling(temperature=0.7, **values)
    want = penalised(settings) / 0.7
    order = np.argsort(-want)
    kept = order[: settings.top_k or V]
    share = softmax(want[kept])
    kept = kept[: np.searchsorted(np.cumsum(share), settings.top_p - 1e-12) + 1]
    kept = kept[want[kept] >= want.max() + np.log(max(settings.min_p, 1e-300))]
    want = np.where(np.isin(np.arange(V), kept), want, -np.inf)
    history = sampling.History(*(jnp.broadcast_to(x, (DRAWS, V)) for x in (PROMPTED, REPEATED.astype(np.int32))))
    rows = sampling.rows([settings] * DRAWS, range(DRAWS))
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (DRAWS, V))
    found = chosen(logits, rows, history, jnp.zeros(DRAWS, jnp.int32), ALL)
    assert_distribution(np.bincount(found, minlength=V) / DRAWS, softmax(want))


MIXED = (
    Sampling(temperature=0.0),
    Sampling(temperature=1.0),
    Sampling(temperature=0.9, top_k=5),
    Sampling(temperature=1.3, top_p=0.6, frequency_penalty=0.2),
    Sampling(temperature=0.8, min_p=0.1, logit_bias={2: 3.0}),
    Sampling(temperature=0.0, repetition_penalty=1.3),
    Sampling(temperature=2.0, top_k=9, top_p=0.95, presence_penalty=0.5),
)


def test_a_row_gets_the_same_token_in_any_batch_and_place():
    """An odd vocabulary: rows begin anywhere in a vector register."""
    wide, random = 1237, np.random.default_rng(3)
    logits = random.normal(0, 3, (len(MIXED), wide)).astype(np.float32)
    prompt, count = random.random(logits.shape) < 0.1, random.integers(0, 3, logits.shape).astype(np.int32)
    seeds, numbers = random.integers(0, 2**40, len(MIXED)).tolist(), random.integers(0, 900, len(MIXED))
    choose = jax.jit(sampling.sample)

    def tokens(order):
        rows = sampling.rows([MIXED[i] for i in order], [seeds[i] for i in order])
        arrays = (logits[order], rows, sampling.History(prompt[order], count[order]))
        return np.asarray(choose(*arrays, numbers[order].astype(np.int32), jnp.ones(wide, jnp.bool_)))

    everyone = np.arange(len(MIXED))
    together = tokens(everyone)
    np.testing.assert_array_equal(tokens(everyone[::-1])[::-1], together)
    np.testing.assert_array_equal([tokens(np.array([i]))[0] for i in everyone], together)
    assert choose._cache_size() == 2  # of seven rows and of one: settings make no program


def test_the_same_seed_draws_anew_at_every_token_and_seeds_of_64_bits_differ():
    logits = jnp.zeros((64, V), jnp.float32)
    settings = [Sampling(temperature=1.0)] * 64
    for seeds, numbers in (([7] * 64, range(64)), (range(64), [0] * 64), ([i << 32 for i in range(64)], [0] * 64)):
        rows, number_B = sampling.rows(settings, seeds), jnp.array(numbers, jnp.int32)
        tokens = chosen(logits, rows, sampling.empty_history(64, V), number_B, ALL)
        assert tokens.dtype == jnp.int32
        assert len(set(np.asarray(tokens).tolist())) > V // 2


def test_samples_of_a_request_have_seeds_of_their_own_and_the_first_has_the_request_s():
    seeds = [sampling.seed_of_sample(seed, number) for seed in (0, 1) for number in range(5)]
    assert (seeds[0], seeds[5]) == (0, 1)
    assert len({*seeds}) == 10
    assert [sampling.check_seed(seed) for seed in seeds] == seeds


def test_a_mask_leaves_only_its_ids():
    bits = np.array([[(1 << 4) | (1 << 9)], [0xFFFFFFFF]], np.uint32)
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (2, V))
    rows = sampling.rows([Sampling(temperature=0.0)] * 2, [0] * 2)
    arguments = (logits, rows, sampling.empty_history(2, V), jnp.zeros(2, jnp.int32), ALL)
    assert sampling.sample(*arguments, jnp.asarray(bits)).tolist() == [4, 1]


def test_log_probabilities_are_the_model_s_whatever_may_be_chosen():
    logits = np.random.default_rng(5).normal(0, 3, (4, V)).astype(np.float32)
    allowed, token = np.arange(V) != logits[0].argmax(), np.array([3, 1, 4, 1], np.int32)
    chosen, ids, values = map(np.asarray, sampling.log_probabilities(logits, token, jnp.asarray(allowed), 5))
    want = np.log(np.stack([softmax(row) for row in logits]))
    np.testing.assert_allclose(chosen, want[np.arange(4), token], atol=4 * 2.0**-23 * np.abs(logits).max())
    np.testing.assert_array_equal(ids, np.argsort(-np.where(allowed, logits, -np.inf), axis=1)[:, :5])
    np.testing.assert_allclose(values, np.take_along_axis(want, ids, 1), atol=4 * 2.0**-23 * np.abs(logits).max())
    again = sampling.log_probabilities(logits, ids[:, 2].astype(np.int32), jnp.asarray(allowed), 5)[0]
    np.testing.assert_array_equal(again, values[:, 2])


def test_history_counts_the_prompt_once_and_the_answer_every_time():
    prompt = jnp.array([[3, 3, 5, 0], [1, 0, 0, 0]])
    history = sampling.with_prompt(sampling.empty_history(2, V), prompt, jnp.array([3, 1]))
    for token, active in (([4, 2], [True, True]), ([4, 2], [True, False])):
        history = sampling.with_token(history, jnp.array(token), jnp.array(active))
    assert [np.flatnonzero(row).tolist() for row in history.prompt_BV] == [[3, 5], [1]]
    assert [np.asarray(row)[np.flatnonzero(row)].tolist() for row in history.count_BV] == [[2], [1]]


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
        ({"top_k": 1.5}, "top_k=1.5"),
        ({"top_k": True}, "top_k=True"),
        ({"temperature": "hot"}, "temperature='hot' must be a number"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"min_p": float("nan")}, "min_p=nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan"),
        ({"presence_penalty": float("inf")}, "presence_penalty=inf"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty=nan"),
        ({"logit_bias": [(1, 2.0)]}, "logit_bias="),
        ({"logit_bias": {-1: 1.0}}, "logit_bias has the id -1"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias has the id 'a'"),
        ({"logit_bias": {3: float("nan")}}, r"logit_bias\[3\]=nan"),
        ({"logit_bias": dict.fromkeys(range(301), 1.0)}, "logit_bias has 301 ids; allowed are at most 300"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**values)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, None])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="seed="):
        sampling.check_seed(seed)
