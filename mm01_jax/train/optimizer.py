"""AdamW and the learning-rate schedule of the paper (section 4.2; docs/model.md D.2)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mm01_jax.config import OptimizerConfig, ScheduleConfig
from pallas_kernels import dispatch

_LARGEST_QUOTIENT, _LARGEST_WEIGHT = 1e20, 1e19  # `is_bounded`


def learning_rate(schedule: ScheduleConfig, steps: int) -> optax.Schedule:
    """Step -> float32 rate: linear warm-up, constant, an optional step down, an optional exponential decay."""

    def rate(step: jax.Array) -> jax.Array:
        at = jnp.asarray(step, jnp.float32)
        value = jnp.full_like(at, schedule.peak)
        if schedule.step_down_at is not None:
            value = jnp.where(at >= schedule.step_down_at, schedule.stepped, value)
        if schedule.decay_start is not None:
            start = schedule.peak if schedule.stepped is None else schedule.stepped
            progress = jnp.clip((at - schedule.decay_start) / max(steps - schedule.decay_start, 1), 0.0, 1.0)
            value = jnp.where(at >= schedule.decay_start, start * (schedule.final / start) ** progress, value)
        return value * jnp.minimum(1.0, (at + 1.0) / max(schedule.warmup_steps, 1))

    return rate


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay on everything but norm weights, the schedule.

    `moment_dtype` is the storage type of the first moment; the second stays float32, whose small values bfloat16
    would freeze (an update below 1/256 of the old value rounds away).
    """
    clip = [] if config.clip_norm is None else [_clip(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.dtype(config.moment_dtype)),
        _decay_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate(config.schedule, steps)),
    )


def global_norm(tree: Any) -> jax.Array:
    """sqrt(sum x^2) over all leaves, float32."""
    return jnp.sqrt(sum(_sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))


def _sum(x: jax.Array) -> jax.Array:
    """The sum of x; on a GPU row by row first.

    XLA (jax 0.11) makes one sum of two that follow each other, and walks it in pieces that cross the rows: of a stack
    that is a concatenation it finds every element by itself then, at 1.3 TB/s instead of 3.4 (H200).
    """
    if x.ndim and dispatch.platform() == "gpu":
        x = jax.lax.optimization_barrier(jnp.sum(x, axis=-1))
    return jnp.sum(x)


def _clip(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with the norm that the step reports: one value, formed once."""

    def update(updates, state, params=None):
        del params
        norm = global_norm(updates)
        return jax.tree.map(lambda x: jnp.where(norm < most, x, x / norm.astype(x.dtype) * most), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _decay_weights(weight_decay: float) -> optax.GradientTransformation:
    """Adds weight_decay * weight to the update of every leaf whose name does not end in `norm`."""

    def update(updates, state, params):
        def one(path, step, weight):
            name = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
            return step if any(part.endswith("norm") for part in name) else step + weight_decay * weight

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def split_frozen[Tree](model: Tree, frozen: Sequence[str]) -> tuple[Tree, Tree]:
    """(what is trained, what is frozen): the model twice, None in each where the other has the weight.

    A weight belongs to the part of the model that its path begins with. What is frozen has neither gradients nor
    moments.
    """

    def trained(path) -> bool:
        return jax.tree_util.keystr(path[:1], simple=True) not in frozen

    leaves, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_weight)
    halves = ([leaf if trained(path) == keep else None for path, leaf in leaves] for keep in (True, False))
    return tuple(jax.tree.unflatten(structure, half) for half in halves)


def join_frozen[Tree](trained: Tree, frozen: Tree) -> Tree:
    """The whole model again."""
    either = functools.partial(jax.tree.map, is_leaf=lambda x: x is None or _is_weight(x))
    return either(lambda a, b: b if a is None else a, trained, frozen)


def _is_weight(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def apply_gradients(optimizer: optax.GradientTransformation, gradients: Any, opt_state: Any, model: Any):
    """(new model, new opt_state, norm of all that is added to the weights, float32).

    The norm is NaN where a weight or a moment of the new state is not finite.
    """
    # optax 0.2.8 raises Python floats to integer counters, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, new_state = optimizer.update(gradients, opt_state, model)
        norm = _checked_norm(*_updated_apart(optimizer, gradients, opt_state, model))
        return optax.apply_updates(model, updates), new_state, norm


def _updated_apart(optimizer: optax.GradientTransformation, gradients: Any, opt_state: Any, model: Any):
    """(updates, new opt_state, new model) once more, for sums over them.

    On a GPU behind a barrier around the counters: where the same update is added to the weights and summed, XLA (jax
    0.11) writes it out and reads it back, 8 of 34 bytes a weight. Made of other counters it is another value, and the
    sums join the pass that makes the weights (benchmarks/train_step.md).
    """
    if dispatch.platform() == "gpu":
        counters = jax.lax.optimization_barrier([x for x in jax.tree.leaves(opt_state) if x.ndim == 0])
        following = iter(counters)
        opt_state = jax.tree.map(lambda x: next(following) if x.ndim == 0 else x, opt_state)
    updates, opt_state = optimizer.update(gradients, opt_state, model)
    return updates, opt_state, optax.apply_updates(model, updates)


def _checked_norm(updates: Any, opt_state: Any, model: Any) -> jax.Array:
    """sqrt(sum updates^2), float32; NaN where a weight or a moment is not finite."""
    moments = (optax.tree_utils.tree_get(opt_state, name) for name in ("mu", "nu"))

    def one(update, *made):
        finite = functools.reduce(jnp.logical_and, (jnp.isfinite(x) for x in made))
        return _sum(jnp.where(finite, jnp.square(update.astype(jnp.float32)), jnp.nan))

    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(one, updates, model, *moments))))


def is_bounded(config: OptimizerConfig, rate: jax.Array) -> jax.Array:
    """Whether a step at this learning rate leaves every weight finite, bool: what is known before it is made.

    Given a finite state and a gradient whose norm is finite, moments are means of finite numbers. Adam's quotient of
    them stays below 1e20: it is of the order of 1 until the second moment underflows, and then eps divides what is
    below 1e-18. Weights beyond 1e19 have squares that are not float32, and the loss would have shown them.
    """
    eps, decay = (jnp.asarray(x, jnp.float32) for x in (config.eps, config.weight_decay))
    largest = rate * _LARGEST_QUOTIENT + rate * decay * _LARGEST_WEIGHT
    return jnp.isfinite(largest) & (eps > 0)  # 0 / 0 where a weight has had no gradient


def steps_taken(opt_state: Any) -> jax.Array:
    """Optimiser steps taken so far (int32): what the schedule reads; refused steps are not among them."""
    return optax.tree_utils.tree_get(opt_state, "count", filtering=lambda path, _: "ScaleByAdam" in str(path))
