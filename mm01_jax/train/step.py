"""TrainState, and the pure functions of one step: init, train."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mm01_jax import sharding
from mm01_jax.config import Config, TrainConfig
from mm01_jax.data.batch import Batch
from mm01_jax.model.abstract import abstract
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings
from mm01_jax.model.multimodal import VLModel, build
from mm01_jax.parallel import collectives
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.train.objectives import captions_and_contrast, pretrain
from mm01_jax.train.optimizer import (
    apply_gradients,
    global_norm,
    is_bounded,
    join_frozen,
    learning_rate,
    make_optimizer,
    split_frozen,
    steps_taken,
)


class Objective(Protocol):
    """What a step minimises (`objectives/`): the sum of its values over the microbatches of a step."""

    def __call__(
        self, model: TextModel, batch: Batch, total_weight: jax.Array, share: float, config: TrainConfig
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], RouterStats]]:
        """(what is minimised, (metrics, which add up over microbatches; router statistics)) of one microbatch.

        A metric named `loss` must be finite, or the step is refused.

        Args:
          total_weight: float32, sum of target weights of the whole global step.
          share: 1 / number of microbatches.
        """


OBJECTIVES: dict[str, Objective] = {
    "next_token": pretrain.objective,
    "captions_and_contrast": captions_and_contrast.objective,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and replaces. `step` counts steps taken, refused ones included."""

    step: jax.Array
    model: TextModel | VLModel
    opt_state: Any


def init_state(config: Config, key: jax.Array) -> TrainState:
    """A fresh state; call under jit with `state_shardings` as out_shardings, or under eval_shape."""
    return state_of(config, build(config, rngs=nnx.Rngs(key)))


def state_of(config: Config, model: TextModel | VLModel) -> TrainState:
    """A state at step 0 around given weights."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    trained, _ = split_frozen(model, config.optimizer.frozen)
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(trained))


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs that carry their shardings: what a checkpoint is restored into."""
    return abstract(
        lambda: init_state(config, jax.random.key(0)), lambda state: shardings(state, mesh, config.mesh.rules)
    )


def train_step(
    state: TrainState, batch: Batch, *, config: Config, objective: Objective | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step on a global batch; jit it with `config` and `objective` static and `state` donated.

    `objective` None is the one that the config names.

    A step whose loss or gradient is not finite, whose routing overflowed a stated bound or whose rate no weight
    can bear (`optimizer.is_bounded`) changes neither weights nor moments nor the schedule: `refused` is 1 and only
    `step` advances. What else makes a value that is not finite, as a moment that was none before, is seen when the new
    state is made: `broken` is 1, and the state must not be kept.

    Returns:
      (new state, float32 metrics: the objective's, grad_norm, update_norm, learning_rate, refused, broken, overflow,
      dropped (share of assignments), expert_load (layers, E) as multiples of the balanced load; docs/training.md).
    """
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    chosen = objective or OBJECTIVES[config.train.objective]
    with collectives.made(config.compute.collectives):
        losses, stats, gradients = _gradients(state.model, batch, config, chosen)
    overflow = jnp.sum(stats.overflow)
    with jax.named_scope("optimizer"):
        norm = global_norm(gradients)
        rate = learning_rate(config.optimizer.schedule, config.train.steps)(steps_taken(state.opt_state))
        finite = jnp.isfinite(losses["loss"]) & jnp.isfinite(norm)
        accepted = finite & (overflow == 0) & is_bounded(config.optimizer, rate)
        trained, frozen = split_frozen(state.model, config.optimizer.frozen)
        old = (trained, state.opt_state)
        *new, update_norm = apply_gradients(optimizer, gradients, state.opt_state, trained)
        trained, opt_state = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), tuple(new), old)
    assigned = jnp.maximum(stats.assigned.sum(-1, keepdims=True), 1.0)
    metrics = losses | {
        "grad_norm": norm,
        "update_norm": jnp.where(accepted, update_norm, 0.0),
        "learning_rate": rate,
        "refused": 1.0 - accepted.astype(jnp.float32),
        "broken": (accepted & ~jnp.isfinite(update_norm)).astype(jnp.float32),
        "overflow": overflow,
        "dropped": jnp.sum(stats.dropped) / jnp.sum(assigned),
        "expert_load": stats.assigned / assigned * config.model.num_experts,
    }
    return TrainState(state.step + 1, join_frozen(trained, frozen), opt_state), metrics


def _gradients(model: TextModel, batch: Batch, config: Config, objective: Objective):
    """(metrics of the objective, router statistics, gradients of the objective) of the whole global step.

    Gradients are of what is trained, None in the place of what is frozen.
    """
    count = config.train.num_microbatches
    total_weight = jnp.maximum(jnp.sum(batch.weights), 1.0)
    trained, frozen = split_frozen(model, config.optimizer.frozen)

    def summand(trained: TextModel | VLModel, part: Batch):
        whole = join_frozen(trained, frozen)
        return objective(whole, part, total_weight=total_weight, share=1.0 / count, config=config.train)

    gradient = jax.value_and_grad(summand, has_aux=True)
    if count == 1:
        (_, (losses, stats)), gradients = gradient(trained, batch)
        return losses, stats, gradients

    def split(x: jax.Array) -> jax.Array:
        # Rows i, i + count, ...: each device's own rows are dealt out, none moves.
        parts = jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)
        return sharding.constrain(parts, model.rules, None, "batch", *(["seq"] if x.ndim == 2 else []))

    def add(total, part):
        (_, reported), gradients = gradient(trained, part)
        return jax.tree.map(jnp.add, total, (reported, gradients)), None

    shapes = jax.eval_shape(gradient, trained, jax.tree.map(lambda x: split(x)[0], batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0][1], shapes[1]))
    ((losses, stats), gradients), _ = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
    return losses, stats, gradients
