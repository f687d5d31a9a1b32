"""The JAX model against the NumPy reference: values, states, losses and every leaf's gradient.

In float64 the two agree to rounding, which is where layouts, orders and derivatives are judged. The kernel operations
are float32 by contract: they take part in the float32 tests here, and have their own parity tests.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.data.batch import Batch
from mm01_jax.inference.scoring import token_loss
from mm01_jax.model.mixers import empty_cache
from mm01_jax.train.objectives.pretrain import balance_loss
from tests.model import jax_model
from tests.reference import losses
from tests.reference.complex_step import directional_derivative
from tests.reference.config import LIGHTNING, SOFTMAX, ReferenceConfig
from tests.reference.documents import document_numbers, positions_in_documents
from tests.reference.leaves import leaves
from tests.reference.model import forward
from tests.reference.random_weights import random_weights
from tests.slow import slow_but

# Sums of at most a few thousand float64 products, each rounded to 1.1e-16 of its terms, through a few layers.
ROUNDING = {"float64": 1e-13, "float32": 1e-5}
LOSS_CHUNK = 16  # chunks that do not divide 40 tokens
LOSS = {"paper": 3.0, "transformers": 0.5, "z": 0.1}  # every term moves the gradient of the router visibly

AWKWARD = ReferenceConfig(
    vocab_size=29,
    hidden_size=12,
    intermediate_size=10,
    attn_type_list=(SOFTMAX, LIGHTNING, LIGHTNING) * 2,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=4,
    rotary_dim=2,
    num_local_experts=5,
    num_experts_per_tok=3,
    layernorm_linear_attention_alpha=1.5,
    layernorm_linear_attention_beta=0.7,
    layernorm_full_attention_alpha=1.25,
    layernorm_full_attention_beta=0.8,
    layernorm_mlp_alpha=1.75,
    layernorm_mlp_beta=0.9,
)
CASES = {  # name: (config, layers of a period)
    "two periods of three": (AWKWARD, 3),
    "capacity that drops": (dataclasses.replace(AWKWARD, attn_type_list=(LIGHTNING,), capacity_factor=0.75), 1),
    "pure lightning": (dataclasses.replace(AWKWARD, attn_type_list=(LIGHTNING,) * 3), 1),
    "pure softmax": (dataclasses.replace(AWKWARD, attn_type_list=(SOFTMAX,) * 2, num_experts_per_tok=1), 1),
    "one layer": (dataclasses.replace(AWKWARD, attn_type_list=(LIGHTNING,)), 1),
}
BY_DEFAULT = ("two periods of three", "capacity that drops", "pure softmax")
# The pattern that holds every part is met in float32 too.
CASES_BY_DTYPE = [(case, "float64") for case in CASES] + [("two periods of three", "float32")]
QUICK = [(case, dtype) for case, dtype in CASES_BY_DTYPE if case in BY_DEFAULT]
SEGMENTS = np.array(
    # Padding inside a document, a document of one token, ids that come back.
    [[0] * 7 + [1] * 2 + [-1] + [1] * 3 + [0] * 4 + [-1] * 3, [-1] + [4] * 10 + [5] + [4] * 8],
    np.int32,
)
TOKENS = np.random.RandomState(3).randint(AWKWARD.vocab_size, size=SEGMENTS.shape).astype(np.int32)


def positions(segments_BS):
    return positions_in_documents(document_numbers(segments_BS), np.zeros(len(segments_BS), int))[0].astype(np.int32)


def reference_loss(config, weights):
    result = forward(config, weights, TOKENS, segments_BS=SEGMENTS)
    loss = losses.cross_entropy(result.logits_BSV, *losses.next_tokens(TOKENS, result.documents_BS))
    loss += LOSS["paper"] * sum(losses.paper_balance(routing, result.real_R) for routing in result.routings)
    loss += LOSS["transformers"] * losses.transformers_balance(result.routings, result.real_R)
    return loss + LOSS["z"] * np.mean([losses.router_z(routing, result.real_R) for routing in result.routings])


def model_loss(model):
    """The loss, and (logits, router statistics)."""
    targets, counts = losses.next_tokens(TOKENS, document_numbers(SEGMENTS))
    hidden, _, stats = model.forward(model.embed_tokens(TOKENS), positions(SEGMENTS), SEGMENTS)
    stats = jax.tree.map(lambda x: x.astype(hidden.dtype), stats)
    counts = jnp.asarray(counts, hidden.dtype)
    batch = Batch(TOKENS, jnp.asarray(targets), positions(SEGMENTS), SEGMENTS, counts)
    loss = token_loss(model, hidden, batch, LOSS_CHUNK) / counts.sum()
    for form in ("paper", "transformers"):
        loss += LOSS[form] * balance_loss(stats, form)
    loss += LOSS["z"] * jnp.mean(stats.z_square / stats.tokens)
    return loss, (model.logits(hidden), stats)


@functools.cache
def released_weights(case: str):
    config, _ = CASES[case]
    return {name: weight.astype(np.float64) for name, weight in random_weights(config, 11).items()}


@functools.cache
def differentiated(case: str, dtype: str):
    """(loss, logits, router statistics, gradients by leaf path) of the JAX model, as NumPy."""
    config, period = CASES[case]
    step = jax_model.compiled(jax.value_and_grad(model_loss, has_aux=True))
    with arithmetic(dtype), jax_model.one_device():
        model = jax_model.build(config, period, released_weights(case), dtype)
        (loss, (logits, stats)), gradient = step(model)
        return float(loss), np.asarray(logits), jax.tree.map(np.asarray, stats), jax_model.leaf_arrays(gradient)


def arithmetic(dtype: str):
    return jax_model.float64_operations() if dtype == "float64" else jax.enable_x64(False)


def assert_close(got, want, dtype: str):
    """Largest error relative to the largest value."""
    assert got.shape == want.shape
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING[dtype] * np.abs(want).max())


@pytest.mark.parametrize(("case", "dtype"), slow_but(QUICK, CASES_BY_DTYPE))
def test_packed_logits_and_losses_equal_the_reference(case, dtype):
    config, _ = CASES[case]
    result = forward(config, released_weights(case), TOKENS, segments_BS=SEGMENTS)
    loss, logits, _, _ = differentiated(case, dtype)
    real_BS = SEGMENTS >= 0
    assert_close(logits[real_BS], result.logits_BSV[real_BS], dtype)
    np.testing.assert_allclose(loss, reference_loss(config, released_weights(case)), rtol=ROUNDING[dtype])


@pytest.mark.parametrize("case", slow_but(BY_DEFAULT, CASES))
def test_router_statistics_equal_the_reference(case):
    config, _ = CASES[case]
    result = forward(config, released_weights(case), TOKENS, segments_BS=SEGMENTS)
    _, _, stats, _ = differentiated(case, "float64")
    for layer, routing in enumerate(result.routings):
        chosen_RA, kept_RA = routing.chosen_RA[result.real_R], routing.kept_RA[result.real_R]
        np.testing.assert_array_equal(stats.assigned[layer], np.bincount(chosen_RA.ravel(), minlength=5))
        assert stats.dropped[layer] == (~kept_RA).sum()
        assert stats.tokens[layer] == result.real_R.sum()
        assert_close(stats.probability[layer], routing.probs_RE[result.real_R].sum(axis=0), "float64")
    assert (stats.dropped.sum() > 0) == (config.capacity_factor is not None)
    assert not stats.overflow.any()


LEAVES = [(case, dtype, path) for case, dtype in CASES_BY_DTYPE for path in leaves(*CASES[case])]


@pytest.mark.parametrize(("case", "dtype", "path"), slow_but([leaf for leaf in LEAVES if leaf[:2] in QUICK], LEAVES))
def test_gradient_of_leaf_equals_the_complex_step_of_the_reference(case, dtype, path):
    config, period = CASES[case]
    weights, leaf = released_weights(case), leaves(config, period)[path]
    random = np.random.RandomState(5)
    direction = {name: random.standard_normal(weights[name].shape) for name in leaf.names.ravel()}
    want = directional_derivative(lambda w: reference_loss(config, w), weights, direction)
    along = leaf.stack(direction)
    gradient = differentiated(case, dtype)[-1][path]
    assert gradient.dtype == dtype
    # Errors of the gradient's entries are independent of the direction's signs: they add as its norm does.
    bound = ROUNDING[dtype] * np.linalg.norm(gradient) * np.linalg.norm(along)
    np.testing.assert_allclose(np.vdot(gradient.astype(np.float64), along), want, rtol=0, atol=bound)


# Tokens of row 0 and of row 1 in each call: two padded chunks, then single tokens while row 1 pauses once.
CALLS = np.array([[7, 6], [4, 7], [1, 1], [1, 0], [1, 1]])


@pytest.mark.parametrize("case", slow_but(BY_DEFAULT, ["two periods of three", "pure lightning", "pure softmax"]))
def test_ragged_rows_prefilled_in_chunks_then_decoded_equal_the_reference(case):
    config, period = CASES[case]
    rows = [np.random.RandomState(b).randint(config.vocab_size, size=CALLS[:, b].sum()) for b in range(2)]
    with jax_model.float64_operations(), jax_model.one_device():
        model = jax_model.build(config, period, released_weights(case), "float64")
        logits, cache = decoded(model, rows)
        states = jax_model.lightning_states(model, cache)
    np.testing.assert_array_equal(cache.lengths, CALLS.sum(axis=0))
    for b in range(2):
        alone = forward(config, released_weights(case), rows[b][None])
        assert_close(logits[b], alone.logits_BSV[0], "float64")
        for state, want in zip(states, alone.states, strict=True):
            assert_close(state[b], want[0], "float64")


def decoded(model, rows):
    """Each row's logits from all of CALLS, and the cache they leave."""

    @jax_model.compiled
    def call(tokens, *rest):
        hidden, cache, _ = model.forward(model.embed_tokens(tokens), *rest)
        return model.logits(hidden), cache

    cache, logits, start = wide_cache(model, batch=2, slots=20), [[], []], np.zeros(2, int)
    for length in CALLS:
        at = np.arange(7 if length.max() > 1 else 1, dtype=np.int32)[None]
        segments = np.where(at < length[:, None], 0, -1).astype(np.int32)
        tokens = np.zeros(segments.shape, np.int32)
        for b, row in enumerate(rows):
            tokens[b, : length[b]] = row[start[b] : start[b] + length[b]]
        out, cache = call(tokens, at + start[:, None].astype(np.int32), segments, cache)
        for b in range(2):
            logits[b].append(np.asarray(out)[b, : length[b]])
        start += length
    return [np.concatenate(row) for row in logits], cache


def wide_cache(model, *, batch: int, slots: int):
    empty = empty_cache(model.config, model.compute, jax_model.RULES, batch, slots)
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, empty)
