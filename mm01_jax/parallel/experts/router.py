"""Which experts a token goes to, and which of its choices an expert's capacity lets stand (paper 2.1; spec A.6, E)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax.config import ModelConfig, Rules, SequenceLayout
from mm01_jax.parallel.sequence_layout import held_here
from pallas_kernels.precision import matmul_precision


def route(
    x_TD: jax.Array, router_DE: jax.Array, num_assigned: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(expert ids (T, A) int32, best first; their weights (T, A); probabilities (T, E); logsumexp of the logits (T,)).

    float32 from the logits on. The weights are the chosen probabilities over their sum.
    """
    wide = np.promote_types(x_TD.dtype, np.float32)
    precision = matmul_precision(x_TD.dtype)
    logits = jnp.einsum("td,de->te", x_TD, router_DE, precision=precision, preferred_element_type=wide)
    lse = jax.nn.logsumexp(logits, axis=-1)
    probability = jnp.exp(logits - lse[:, None])
    _, choice = lax.top_k(lax.stop_gradient(probability), num_assigned)
    # Chosen by comparison, not by index: the transpose is a product, where an index's would be a scatter-add.
    chosen = jax.nn.one_hot(choice, router_DE.shape[1], dtype=jnp.bool_)
    top = jnp.sum(jnp.where(chosen, probability[:, None, :], 0.0), axis=-1)
    return choice.astype(jnp.int32), top / jnp.sum(top, axis=-1, keepdims=True), probability, lse


def count(choice: jax.Array, num_experts: int) -> jax.Array:
    """How often each expert id occurs: (..., n) -> (..., E) int32; ids outside [0, E) are not counted."""
    return jnp.sum(jax.nn.one_hot(choice, num_experts, dtype=jnp.bool_), axis=-2, dtype=jnp.int32)


def expert_capacity(config: ModelConfig, rules: Rules, local_tokens: int) -> int:
    """Assignments that one expert serves, of all tokens in the scope; padding counts, so that it is known before data.

    Inside `shard_map`, on `local_tokens` tokens of this device.
    """
    rows, columns = _scope(config, rules)
    tokens = local_tokens * math.prod(lax.axis_size(axis) for axis in (*rows, *columns))
    return math.ceil(config.capacity_factor * tokens * config.num_experts_per_token / config.num_experts)


def keep_first(
    choice_TA: jax.Array,
    shape: tuple[int, int],
    config: ModelConfig,
    rules: Rules,
    layout: SequenceLayout = "contiguous",
) -> jax.Array:
    """The choices with those beyond an expert's capacity replaced by E; inside `shard_map`.

    An expert keeps its first assignments in the order (row, position, choice rank) of the whole scope: counts per row,
    stripe and expert, a few integers, are gathered over every axis of the scope that shards tokens (the global router).

    Args:
      choice_TA: int32 (T, A), rows and positions of this device in order; E where a token goes nowhere.
      shape: (rows, positions) of this device, T = rows * positions.
    """
    B, S = shape
    E, A = config.num_experts, config.num_experts_per_token
    rows, columns = _scope(config, rules)
    stripe_P = jnp.stack(held_here(rules.seq, layout)).astype(jnp.int32)  # P stripes of each row are here
    P = stripe_P.size
    choice = choice_TA.reshape(B, P, S // P * A)
    counts_CBPE, stripes_CP = (_gather(x, columns) for x in (count(choice, E), stripe_P))  # C shards of columns
    row_RBE = _gather(counts_CBPE.sum(axis=(0, 2)), rows)
    ahead_RBE = (jnp.cumsum(row_RBE.reshape(-1, E), axis=0) - row_RBE.reshape(-1, E)).reshape(row_RBE.shape)
    earlier_CPP = stripes_CP[:, :, None] < stripe_P[None, None, :]
    in_row_BPE = jnp.sum(jnp.where(earlier_CPP[:, None, :, :, None], counts_CBPE[:, :, :, None], 0), axis=(0, 2))
    mine_BPE = ahead_RBE[_index(rows)][:, None] + in_row_BPE  # assignments ahead of each stripe of this device
    one_hot = jax.nn.one_hot(choice, E, dtype=jnp.int32)
    rank = jnp.cumsum(one_hot, axis=2) - one_hot + mine_BPE[:, :, None, :]
    rank = jnp.sum(rank * one_hot, axis=-1)
    return jnp.where(rank < expert_capacity(config, rules, B * S), choice, E).reshape(choice_TA.shape)


def _scope(config: ModelConfig, rules: Rules) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes over which rows, and positions, count together for one capacity."""
    if config.capacity_scope == "global":
        return rules.batch, rules.seq
    return tuple(a for a in rules.batch if a in rules.expert), tuple(a for a in rules.seq if a in rules.expert)


def _gather(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return lax.all_gather(x, axes) if axes else x[None]


def _index(axes: tuple[str, ...]) -> jax.Array | int:
    return lax.axis_index(axes) if axes else 0
