"""Laws of one training step: what it changes, what it refuses, what it reports."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mm01_jax.config import Config, OptimizerConfig
from mm01_jax.train import refusal, step
from mm01_jax.train.objectives import pretrain
from mm01_jax.train.optimizer import is_bounded
from tests import small
from tests.model.jax_model import leaf_arrays

SEGMENTS = [[0] * 20 + [1] * 12, [0] * 31 + [-1], [3] * 5 + [4] * 27, [-1] * 10 + [1] * 22]
BATCH = small.batch(SEGMENTS)
_PLACES = np.arange(BATCH.weights.size).reshape(BATCH.weights.shape)
INFINITE = BATCH._replace(weights=np.where(_PLACES == 0, np.float32(3e38), BATCH.weights))  # the loss overflows
BASE = small.config(train__batch_size=4, train__balance_loss="none", train__steps=8, optimizer__clip_norm=0.5)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with small.one_device():
        yield


@functools.cache
def train_step(config: Config):
    """Compiled once: the state goes out as it came in."""
    return small.unoptimised(functools.partial(step.train_step, config=config), out_shardings=(placed(config), None))


@functools.cache
def start(config: Config = BASE) -> step.TrainState:
    make = small.unoptimised(functools.partial(step.init_state, config), out_shardings=placed(config))
    return make(jax.random.key(0))


def placed(config: Config):
    return jax.tree.map(lambda x: x.sharding, step.abstract_state(config, jax.sharding.get_mesh()))


def adam(state: step.TrainState):
    """(first moments, second moments, count) as NumPy, by leaf path."""
    (found,) = [s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState)]
    return leaf_arrays(found.mu), leaf_arrays(found.nu), int(found.count)


def with_value(tree, name: str, value: float):
    """One number of the leaf called `name` replaced."""

    def plant(path, x):
        if name not in jax.tree_util.keystr(path):
            return x
        return jax.device_put(np.where(np.arange(x.size).reshape(x.shape) == 3, np.float32(value), x), x.sharding)

    return jax.tree_util.tree_map_with_path(plant, tree)


def bits(tree) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def assert_refused(state: step.TrainState, new: step.TrainState, metrics) -> None:
    assert metrics["refused"] == 1.0
    assert metrics["update_norm"] == 0.0
    assert int(new.step) == int(state.step) + 1
    assert bits((new.model, new.opt_state)) == bits((state.model, state.opt_state))


def test_microbatches_equal_one_batch():
    parts = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, num_microbatches=4))
    (one, metrics), (many, metrics_many) = train_step(BASE)(start(), BATCH), train_step(parts)(start(), BATCH)
    np.testing.assert_allclose(metrics_many["loss"], metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics_many["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    np.testing.assert_array_equal(metrics_many["expert_load"], metrics["expert_load"])
    first, first_many = adam(one)[0], adam(many)[0]  # 0.1 times the gradients
    for path, want in first.items():
        np.testing.assert_allclose(first_many[path], want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=path)


def test_a_step_is_adamw_with_clipping_decay_and_the_logged_rate():
    """The NumPy formulas, with the gradients that the moments imply, over warm-up and after it."""
    optimizer, state = BASE.optimizer, start()
    b1, b2 = optimizer.b1, optimizer.b2
    for count in range(1, 5):
        old, (mu_old, nu_old, _) = leaf_arrays(state.model), adam(state)
        state, metrics = train_step(BASE)(state, BATCH)
        new, (mu, nu, counted) = leaf_arrays(state.model), adam(state)
        assert counted == count
        rate = min(1.0, count / 3) * 1e-2
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        gradients = {path: (mu[path] - b1 * mu_old[path]) / (1 - b1) for path in mu}
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
        assert metrics["grad_norm"] > optimizer.clip_norm
        np.testing.assert_allclose(norm, optimizer.clip_norm, rtol=1e-5)
        for path, weight in old.items():
            g = gradients[path]
            np.testing.assert_allclose(
                nu[path], b2 * nu_old[path] + (1 - b2) * g**2, rtol=0, atol=1e-5 * nu[path].max()
            )
            direction = mu[path] / (1 - b1**count) / (np.sqrt(nu[path] / (1 - b2**count)) + optimizer.eps)
            decay = 0.0 if path.endswith("norm") else optimizer.weight_decay
            want = weight - rate * (direction + decay * weight)
            np.testing.assert_allclose(new[path], want, rtol=0, atol=2e-6 * np.abs(want).max(), err_msg=path)
    assert metrics["refused"] == 0.0


def test_a_nan_in_one_weight_refuses_the_step_and_changes_nothing():
    state = dataclasses.replace(start(), model=with_value(start().model, "final_norm", np.nan))
    new, metrics = train_step(BASE)(state, BATCH)
    assert_refused(state, new, metrics)
    assert np.isnan(metrics["loss"])


def test_an_infinite_loss_refuses_the_step_and_changes_nothing():
    new, metrics = train_step(BASE)(start(), INFINITE)
    assert_refused(start(), new, metrics)
    assert np.isinf(metrics["loss"])


def test_a_finite_loss_with_an_infinite_gradient_refuses_the_step():
    exploding = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, z_loss_coef=1e38))
    new, metrics = train_step(exploding)(start(), BATCH)
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    assert_refused(start(), new, metrics)


def test_an_overflow_of_the_dropless_bound_refuses_the_step_and_is_counted():
    bounded = dataclasses.replace(BASE, compute=dataclasses.replace(BASE.compute, dropless_bound=1.0))
    new, metrics = train_step(bounded)(start(bounded), BATCH)
    load = np.asarray(metrics["expert_load"])
    real = sum(np.asarray(row) >= 0 for row in SEGMENTS)
    assigned = load / 4 * real.sum() * 2
    capacity = 4 * 32 * 2 / 4  # padding included
    np.testing.assert_allclose(metrics["overflow"], np.maximum(assigned - capacity, 0).sum(), rtol=1e-5)
    assert metrics["overflow"] > 0
    assert_refused(start(bounded), new, metrics)
    values = {name: value.tolist() for name, value in metrics.items()}
    assert f"beyond compute.dropless_bound=1.0 (the busiest expert has {load.max():.2f} times" in refusal.reason(
        values, bounded.compute
    )
    advice = refusal.advice(values, bounded.compute)
    assert advice.startswith("Set compute.dropless_bound=None, ") and "optimizer.schedule.peak" not in advice
    assert "compute.dropless_bound=None" in refusal.advice(None, bounded.compute)
    assert "dropless" not in refusal.advice(values | {"overflow": 0.0}, bounded.compute)


def test_a_rate_that_no_weight_can_bear_refuses_the_step_and_changes_nothing():
    config = dataclasses.replace(BASE, optimizer=small.config(optimizer__schedule__peak=1e30).optimizer)
    new, metrics = train_step(config)(start(), BATCH)
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert_refused(start(), new, metrics)
    assert metrics["broken"] == 0.0


@pytest.mark.parametrize(
    ("rate", "weight_decay", "eps", "bounded"),
    [
        (1e4, 0.1, 1e-8, True),
        (1e-3, 1e10, 1e-37, True),
        (1e20, 0.0, 1e-8, False),
        (np.inf, 0.1, 1e-8, False),
        (1e-3, 1e38, 1e-8, False),
        (1e-3, 0.1, 1e-50, False),  # 0 in float32
    ],
)
def test_settings_are_bounded_where_no_update_can_leave_float32(rate, weight_decay, eps, bounded):
    config = OptimizerConfig(weight_decay=weight_decay, eps=eps)
    assert is_bounded(config, jnp.float32(rate)) == bounded


@pytest.mark.parametrize("moment", ["mu", "nu"])
def test_a_state_that_is_not_finite_though_loss_and_gradient_are_is_told(moment):
    """An infinite second moment makes an update of 0, which no norm shows."""
    state = start()
    (at,) = [i for i, s in enumerate(state.opt_state) if isinstance(s, optax.ScaleByAdamState)]
    adam_state = state.opt_state[at]
    spoilt = adam_state._replace(**{moment: with_value(getattr(adam_state, moment), "head", np.inf)})
    opt_state = (*state.opt_state[:at], spoilt, *state.opt_state[at + 1 :])
    _, metrics = train_step(BASE)(dataclasses.replace(state, opt_state=opt_state), BATCH)
    assert metrics["refused"] == 0.0
    assert metrics["broken"] == 1.0
    assert np.isnan(metrics["update_norm"])


def test_the_norm_of_the_update_is_that_of_what_the_weights_moved_by():
    new, metrics = train_step(BASE)(start(), BATCH)
    old = leaf_arrays(start().model)
    moved = [x.astype(np.float64) - old[path] for path, x in leaf_arrays(new.model).items()]
    norm = np.sqrt(sum((x**2).sum() for x in moved))
    np.testing.assert_allclose(metrics["update_norm"], norm, rtol=1e-5)
    assert metrics["broken"] == 0.0


def test_the_schedule_waits_for_a_refused_step():
    state, _ = train_step(BASE)(start(), BATCH)
    refused, metrics = train_step(BASE)(state, INFINITE)
    accepted, later = train_step(BASE)(refused, BATCH)
    assert metrics["learning_rate"] == later["learning_rate"]
    straight, _ = train_step(BASE)(state, BATCH)
    assert bits(accepted.model) == bits(straight.model)
    assert bits(accepted.opt_state) == bits(straight.opt_state)
    assert int(accepted.step) == int(straight.step) + 1


def test_router_losses_count_by_their_coefficients():
    """On one state the objective is linear in them."""

    def value(**train):
        config = small.replace(BASE, **{"train__balance_loss": "paper", **train})
        arguments = (start().model, BATCH, jnp.asarray(1.0), 1.0)
        found, (losses, _) = jax.jit(functools.partial(pretrain.objective, config=config.train))(*arguments)
        return float(found), {name: float(value) for name, value in losses.items()}

    (none, _), (one, losses) = value(train__balance_coef=0.0), value(train__balance_coef=1.0)
    four, z = value(train__balance_coef=4.0)[0], value(train__balance_coef=0.0, train__z_loss_coef=1.0)[0]
    assert one > none
    np.testing.assert_allclose((four - none) / (one - none), 4.0, rtol=1e-3)
    # What is reported has no coefficients; a sum with the loss rounds off the last digits of the smaller one.
    assert losses["loss"] == none
    np.testing.assert_allclose(losses["balance_loss"], one - none, atol=2.0**-22 * one)
    np.testing.assert_allclose(losses["z_loss"], z - none, atol=2.0**-22 * z)


def test_one_batch_again_and_again_is_learned():
    """Routers included: their losses are on."""
    config = small.config(train__batch_size=4, train__z_loss_coef=1e-3, optimizer__moment_dtype="bfloat16")
    state = start(config)
    moments = {x.dtype.name for x in adam(state)[0].values()}, {x.dtype.name for x in adam(state)[1].values()}
    assert moments == ({"bfloat16"}, {"float32"})
    losses = []
    for _ in range(12):
        state, metrics = train_step(config)(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1.0
    assert {x.dtype.name for x in adam(state)[0].values()} == {"bfloat16"}


def test_padding_and_documents_without_targets_count_nowhere():
    state, places = start(), np.asarray(BATCH.segments) == -1
    names = ("tokens", "targets", "positions")
    batch = BATCH._replace(**{name: np.where(places, np.int32(7), getattr(BATCH, name)) for name in names})
    (new, metrics), (new_other, metrics_other) = train_step(BASE)(state, BATCH), train_step(BASE)(state, batch)
    assert bits(metrics) == bits(metrics_other)
    assert bits(new) == bits(new_other)


def test_a_batch_without_a_single_target_is_a_step_of_decay_alone():
    batch = BATCH._replace(weights=np.zeros_like(BATCH.weights))
    state, metrics = train_step(BASE)(start(), batch)
    assert metrics["loss"] == 0.0
    assert metrics["grad_norm"] == 0.0
    assert metrics["refused"] == 0.0
    old, rate = leaf_arrays(start().model), np.float32(metrics["learning_rate"])
    for path, weight in leaf_arrays(state.model).items():
        decay = 0.0 if path.endswith("norm") else rate * 0.1
        np.testing.assert_allclose(weight, old[path] * (1 - decay), rtol=1e-6)


def test_the_objective_is_an_argument():
    """Twice the loss has twice the gradient, and what is reported is what the objective says."""
    loose = small.replace(BASE, optimizer__clip_norm=None)

    def doubled(*arguments, **options):
        value, (losses, stats) = pretrain.objective(*arguments, **options)
        return 2.0 * value, ({"loss": losses["loss"] + 1.0, "twice": 2.0 * losses["loss"]}, stats)

    other = functools.partial(step.train_step, config=loose, objective=doubled)
    _, metrics = train_step(loose)(start(loose), BATCH)
    new, found = small.unoptimised(other, out_shardings=(placed(loose), None))(start(loose), BATCH)
    np.testing.assert_allclose(found["loss"], metrics["loss"] + 1.0, rtol=1e-6)
    np.testing.assert_allclose(found["twice"], 2.0 * metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["grad_norm"], 2.0 * metrics["grad_norm"], rtol=1e-5)
    assert int(new.step) == 1
