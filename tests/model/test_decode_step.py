"""The decoder's step of one token a row by operations of its own, against the NumPy reference of whole rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.model import decode_step
from mm01_jax.model.mixers import empty_cache
from tests.model import jax_model
from tests.model.test_model_reference import AWKWARD, ROUNDING
from tests.reference.model import forward
from tests.reference.random_weights import random_weights

LENGTH = 5
CUT_IN_THREE = dataclasses.replace(AWKWARD, vocab_size=30, intermediate_size=12)  # heads, their keys, experts, words


def _decoded(model, tokens_BS, active_SB, rings: bool = False, devices: int = 1):
    """(logits of every step (S, B, V), router statistics (S, ...), the cache)."""

    @jax.jit
    def step(model, cache, token_B, active_B):
        x = model.embed_tokens(token_B[:, None])[:, 0]
        told = decode_step.Told(cache.lengths, active_B)
        hidden_BD, cache, choice = decode_step.forward(model, x, told, cache)
        stats = decode_step.stats(choice, active_B, model.config.num_experts)
        return model.logits(hidden_BD[:, None])[:, 0], stats, cache

    with jax.set_mesh(sharding.make_mesh(MeshConfig(tensor=devices), jax.devices()[:devices])):
        cache = empty_cache(model.config, model.compute, model.rules, len(tokens_BS), 8)
        begun, results = cache.lengths, []
        cache = decode_step.with_rings(model, cache) if rings else cache
        for active_B in active_SB:
            token_B = jnp.asarray(tokens_BS[np.arange(len(tokens_BS)), np.asarray(cache.lengths) % LENGTH])
            logits, stats, cache = step(model, cache, token_B, jnp.asarray(active_B))
            results.append((np.asarray(logits), stats))
        cache = decode_step.end_rings(model, cache, begun)
    return [x for x, _ in results], [x for _, x in results], cache


@pytest.mark.parametrize("config, devices", [(AWKWARD, 1), (CUT_IN_THREE, 3)], ids=["alone", "tensor 3"])
def test_tokens_one_by_one_give_the_reference_logits_and_idle_rows_wait(config, devices):
    weights = {name: weight.astype(np.float64) for name, weight in random_weights(config, 11).items()}
    model = jax_model.build(config, 3, weights, "float32")
    tokens_BS = np.random.RandomState(4).randint(config.vocab_size, size=(2, LENGTH)).astype(np.int32)
    active_SB = np.array([[1, 1], [1, 0], [1, 1], [0, 1], [1, 1], [1, 1]], bool)
    logits, stats, cache = _decoded(model, tokens_BS, active_SB, devices=devices)
    result = forward(config, weights, tokens_BS)
    assert np.array_equal(cache.lengths, [LENGTH, LENGTH])
    place_B = np.zeros(2, int)
    for step, active_B in enumerate(active_SB):
        for row in np.flatnonzero(active_B):
            want = result.logits_BSV[row, place_B[row]]
            np.testing.assert_allclose(logits[step][row], want, rtol=0, atol=ROUNDING["float32"] * np.abs(want).max())
            place_B[row] += 1
        assert (np.asarray(stats[step].assigned).sum(axis=1) == 3 * active_B.sum()).all()
    chosen = np.stack([np.asarray(x.assigned) for x in stats]).sum(axis=0)
    want = [np.bincount(routing.chosen_RA.ravel(), minlength=5) for routing in result.routings]
    assert np.array_equal(chosen, want)


def test_tokens_with_rings_give_the_reference_logits_and_states_of_the_steps_without():
    weights = {name: weight.astype(np.float64) for name, weight in random_weights(AWKWARD, 11).items()}
    model = jax_model.build(AWKWARD, 3, weights, "float32")
    tokens_BS = np.random.RandomState(4).randint(AWKWARD.vocab_size, size=(2, LENGTH)).astype(np.int32)
    active_SB = np.array([[1, 1]] * 3 + [[1, 0]] * 2, bool)
    logits, _, cache = _decoded(model, tokens_BS, active_SB, rings=True)
    want = forward(AWKWARD, weights, tokens_BS).logits_BSV
    for step, active_B in enumerate(active_SB):
        assert np.abs(logits[step] - want[:, step])[active_B].max() <= ROUNDING["float32"] * np.abs(want).max()
    plain = _decoded(model, tokens_BS, active_SB)[2]
    for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(plain), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= ROUNDING["float32"] * np.abs(np.asarray(b)).max()
