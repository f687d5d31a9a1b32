"""The router losses against the NumPy reference, and the learning rate's shape. Nothing is compiled."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.config import OptimizerConfig, ScheduleConfig
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.train.objectives.pretrain import balance_loss
from mm01_jax.train.optimizer import apply_gradients, learning_rate, make_optimizer
from tests.reference import losses

LAYERS, TOKENS, E, A = 3, 50, 5, 2


@pytest.fixture(scope="module")
def routings():
    """Random routings of every layer, and which tokens are real."""
    random = np.random.default_rng(0)
    real = random.random(TOKENS) < 0.8
    found = []
    for _ in range(LAYERS):
        probs = random.dirichlet(np.ones(E), size=TOKENS)
        chosen = np.argsort(-probs, axis=-1)[:, :A]
        found.append(types.SimpleNamespace(probs_RE=probs, chosen_RA=chosen))
    return found, real


def stats(routings, real) -> RouterStats:
    assigned = np.stack([np.bincount(r.chosen_RA[real].ravel(), minlength=E) for r in routings])
    probability = np.stack([r.probs_RE[real].sum(0) for r in routings])
    each = jnp.zeros(LAYERS, jnp.float32)
    return RouterStats(
        assigned=jnp.asarray(assigned, jnp.float32),
        probability=jnp.asarray(probability, jnp.float32),
        z_square=each,
        tokens=each + real.sum().astype(np.float32),
        dropped=each,
        overflow=each,
    )


def test_the_paper_s_balance_loss_is_summed_over_layers(routings):
    want = sum(losses.paper_balance(routing, routings[1]) for routing in routings[0])
    np.testing.assert_allclose(balance_loss(stats(*routings), "paper"), want, rtol=1e-6)


def test_transformers_balance_loss_takes_all_layers_at_once(routings):
    np.testing.assert_allclose(
        balance_loss(stats(*routings), "transformers"), losses.transformers_balance(*routings), rtol=1e-6
    )


def test_balanced_routers_give_each_form_its_constant():
    even = jnp.full((LAYERS, E), 1.0, jnp.float32)
    each = jnp.full(LAYERS, 10.0, jnp.float32)
    balanced = RouterStats(
        assigned=even * 10 * A / E, probability=even * 10 / E, z_square=each, tokens=each, dropped=each, overflow=each
    )
    np.testing.assert_allclose(balance_loss(balanced, "paper"), LAYERS * A / E**2, rtol=1e-6)
    np.testing.assert_allclose(balance_loss(balanced, "transformers"), A, rtol=1e-6)
    assert balance_loss(balanced, "none") == 0.0


SCHEDULE = ScheduleConfig(peak=2e-4, warmup_steps=5, step_down_at=20, stepped=1.3e-4, decay_start=30, final=3e-5)


def rates(schedule: ScheduleConfig, steps: int) -> np.ndarray:
    return np.array([learning_rate(schedule, steps)(jnp.int32(at)) for at in range(steps + 10)])


def test_learning_rate_warms_up_stays_steps_down_and_decays_exponentially_to_its_end():
    found = rates(SCHEDULE, 50)
    np.testing.assert_allclose(found[:5], 2e-4 * np.arange(1, 6) / 5, rtol=1e-6)
    np.testing.assert_allclose(found[5:20], 2e-4, rtol=1e-6)
    np.testing.assert_allclose(found[20:30], 1.3e-4, rtol=1e-6)
    np.testing.assert_allclose(found[30], 1.3e-4, rtol=1e-6)
    np.testing.assert_allclose(found[31:51] / found[30:50], (3e-5 / 1.3e-4) ** (1 / 20), rtol=1e-5)
    np.testing.assert_allclose(found[50:], 3e-5, rtol=1e-6)
    assert found.dtype == np.float32


def test_learning_rate_without_options_is_the_peak():
    np.testing.assert_allclose(rates(ScheduleConfig(peak=1e-3, warmup_steps=0), 5), 1e-3, rtol=1e-6)


def test_learning_rate_decays_from_the_peak_without_a_step_down():
    found = rates(ScheduleConfig(peak=1e-3, warmup_steps=1, decay_start=10, final=1e-4), 20)
    np.testing.assert_allclose(found[9:21:5], [1e-3, 1e-3 * 0.1**0.4, 1e-3 * 0.1**0.9], rtol=1e-5)


def stepped(config: OptimizerConfig, gradient: float):
    """(weights, optimiser state, norm of the update) of one step from weights of 2."""
    weights = {"embed": jnp.full(4, 2.0), "final_norm": jnp.full(4, 2.0), "mixer": {"norm": jnp.full(4, 2.0)}}
    gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), weights)
    optimizer = make_optimizer(config, 10)
    return apply_gradients(optimizer, gradients, optimizer.init(weights), weights)


CONSTANT = ScheduleConfig(peak=0.5, warmup_steps=0)


def test_weights_decay_and_norms_do_not():
    weights, _, update_norm = stepped(OptimizerConfig(schedule=CONSTANT, weight_decay=0.1), 0.0)
    np.testing.assert_allclose(update_norm, 0.5 * 0.1 * 2.0 * 4**0.5, rtol=1e-6)  # of the four weights that decay
    np.testing.assert_allclose(weights["embed"], 2.0 - 0.5 * 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(weights["final_norm"], np.float32(2))
    np.testing.assert_array_equal(weights["mixer"]["norm"], np.float32(2))


def test_the_optimiser_is_adam_with_the_config_s_constants():
    """Two steps of gradient 0.5 from weights of 2, by hand in float64."""
    config = OptimizerConfig(schedule=CONSTANT, b1=0.7, b2=0.8, eps=0.25, weight_decay=0.02, clip_norm=None)
    weights = {"embed": jnp.full(4, 2.0)}
    optimizer = make_optimizer(config, 10)
    state, want, mu, nu = optimizer.init(weights), 2.0, 0.0, 0.0
    for step in (1, 2):
        weights, state, _ = apply_gradients(optimizer, {"embed": jnp.full(4, 0.5)}, state, weights)
        mu, nu = 0.7 * mu + 0.3 * 0.5, 0.8 * nu + 0.2 * 0.25
        want -= 0.5 * (mu / (1 - 0.7**step) / (np.sqrt(nu / (1 - 0.8**step)) + 0.25) + 0.02 * want)
        np.testing.assert_allclose(weights["embed"], want, rtol=1e-6)


@pytest.mark.parametrize(("clip", "seen"), [(None, 100.0), (1.0, 1 / 12**0.5)])  # twelve equal gradients of norm 1
def test_gradients_are_clipped_to_the_norm_or_not_at_all(clip, seen):
    _, state, _ = stepped(OptimizerConfig(schedule=CONSTANT, clip_norm=clip), 100.0)
    (second,) = [s.nu["embed"] for s in state if hasattr(s, "nu")]
    np.testing.assert_allclose(second, 0.05 * seen**2, rtol=1e-5)
