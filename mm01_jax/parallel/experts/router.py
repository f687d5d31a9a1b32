"""Which experts a token goes to, and which of its choices an expert's capacity lets stand.

Paper 2.1; docs/model.md A.6, E.
The balance loss is training's (`train/objectives/pretrain.py`), made of the sums in `layer.RouterStats`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax.config import ModelConfig, Rules, SequenceLayout
from mm01_jax.parallel import collectives
from mm01_jax.parallel.sequence_layout import held_here
from pallas_kernels.kept import ROUTED, keep
from pallas_kernels.precision import matmul_precision


@jax.named_scope("route")
def route(
    x_TD: jax.Array, router_DE: jax.Array, num_assigned: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(expert ids (T, A) int32, best first; their weights (T, A); probabilities (T, E); logsumexp of the logits (T,)).

    float32 from the logits on. The weights are the chosen probabilities over their sum.
    """
    wide = np.promote_types(x_TD.dtype, np.float32)
    precision = matmul_precision(x_TD.dtype)
    logits = jnp.einsum("td,de->te", x_TD, router_DE, precision=precision, preferred_element_type=wide)
    logits = keep(logits, ROUTED)
    lse = jax.nn.logsumexp(logits, axis=-1)
    probability = jnp.exp(logits - lse[:, None])
    choice = keep(largest(lax.stop_gradient(probability), num_assigned), ROUTED)
    # Chosen by comparison, not by index: the transpose is a product, where an index's would be a scatter-add.
    chosen = jax.nn.one_hot(choice, router_DE.shape[1], dtype=jnp.bool_)
    top = jnp.sum(jnp.where(chosen, probability[:, None, :], 0.0), axis=-1)
    return choice.astype(jnp.int32), top / jnp.sum(top, axis=-1, keepdims=True), probability, lse


def largest(probability_TE: jax.Array, number: int) -> jax.Array:
    """Indices of the largest (T, number) int32, the largest first, of equal ones the lower index first.

    One after another: XLA's top_k sorts all E on a GPU, which takes 50 us a layer where this takes 10.
    """
    index_TE, found = lax.broadcasted_iota(jnp.int32, probability_TE.shape, 1), []
    for _ in range(number):
        found.append(lax.argmax(probability_TE, 1, jnp.int32))
        probability_TE = jnp.where(index_TE == found[-1][:, None], -1.0, probability_TE)
    return jnp.stack(found, axis=1)


def count(choice: jax.Array, num_experts: int) -> jax.Array:
    """How often each expert id occurs: (..., n) -> (..., E) int32; ids outside [0, E) are not counted."""
    return jnp.sum(jax.nn.one_hot(choice, num_experts, dtype=jnp.bool_), axis=-2, dtype=jnp.int32)


def expert_capacity(
    config: ModelConfig, rules: Rules, device_tokens: int, axis_size: Callable[[str], int] = lax.axis_size
) -> int:
    """Assignments that one expert serves, of all tokens in the scope; padding counts, so that it is known before data.

    For so many tokens on every device, inside `shard_map` or, with the sizes of a mesh config's axes, outside.
    """
    batch_axes, seq_axes = _scope(config, rules)
    tokens = device_tokens * math.prod(map(axis_size, (*batch_axes, *seq_axes)))
    capacity = config.capacity_factor * tokens * config.num_experts_per_token / config.num_experts
    return min(tokens, math.ceil(capacity))  # an expert has a token once


@jax.named_scope("route")
def keep_first(
    choice_TA: jax.Array,
    shape: tuple[int, int],
    config: ModelConfig,
    rules: Rules,
    layout: SequenceLayout = "contiguous",
) -> jax.Array:
    """The choices with those beyond an expert's capacity replaced by E; inside `shard_map`.

    An expert keeps its first assignments in the order (sequence, position, choice rank) of the whole scope. Counts per
    sequence, stripe and expert, a few integers, are gathered over every axis of the scope that shards tokens (the
    global router). One expert, one sequence of two stripes, capacity 2, x where a token chose the expert:

        stripe      0            1
        choices     x  .  .  .   .  x  x  .
        ahead       0            1               assignments in the stripes before
        rank        0  .  .  .   .  1  2  .      ahead, and those before it in its stripe
        served      x  .  .  .   .  x  .  .      rank < capacity

    Args:
      choice_TA: int32 (T, A), sequences and positions of this device in order; E where a token goes nowhere.
      shape: (sequences, positions) of this device, T = sequences * positions.
    """
    B, S = shape
    E, A = config.num_experts, config.num_experts_per_token
    batch_axes, seq_axes = _scope(config, rules)
    stripe_P = jnp.stack(held_here(rules.seq, layout)).astype(jnp.int32)  # the P stripes of a sequence that are here
    P = stripe_P.size
    choice_BPA = choice_TA.reshape(B, P, S // P * A)  # from here on A is all assignments of a stripe
    counts_CBPE, stripe_CP = (_gather(x, seq_axes) for x in (count(choice_BPA, E), stripe_P))  # C shards of a sequence
    ahead_BE = _ahead_of_sequences(counts_CBPE.sum(axis=(0, 2)), batch_axes)
    ahead_BPE = _ahead_in_sequence(counts_CBPE, stripe_CP, stripe_P)
    rank_BPA = _rank(choice_BPA, ahead_BE[:, None] + ahead_BPE, E)
    return jnp.where(rank_BPA < expert_capacity(config, rules, B * S), choice_BPA, E).reshape(choice_TA.shape)


def _ahead_of_sequences(counts_BE: jax.Array, batch_axes: tuple[str, ...]) -> jax.Array:
    """(B, E): assignments to each expert in all sequences before each of this device's; counts of whole sequences."""
    counts_RBE = _gather(counts_BE, batch_axes)  # R shards of the batch
    counts_NE = counts_RBE.reshape(-1, counts_BE.shape[-1])
    ahead_RBE = (jnp.cumsum(counts_NE, axis=0) - counts_NE).reshape(counts_RBE.shape)
    return ahead_RBE[_index(batch_axes)]


def _ahead_in_sequence(counts_CBPE: jax.Array, stripe_CP: jax.Array, stripe_P: jax.Array) -> jax.Array:
    """(B, P, E): assignments to each expert in a sequence's stripes before each of those here."""
    is_before_CPP = stripe_CP[:, :, None] < stripe_P[None, None, :]
    return jnp.sum(jnp.where(is_before_CPP[:, None, :, :, None], counts_CBPE[:, :, :, None], 0), axis=(0, 2))


def _rank(choice_BPA: jax.Array, ahead_BPE: jax.Array, num_experts: int) -> jax.Array:
    """(B, P, A): how many assignments to the same expert come before each; 0 for those to none."""
    one_hot = jax.nn.one_hot(choice_BPA, num_experts, dtype=jnp.int32)
    rank_BPAE = jnp.cumsum(one_hot, axis=2) - one_hot + ahead_BPE[:, :, None, :]
    return jnp.sum(rank_BPAE * one_hot, axis=-1)


def _scope(config: ModelConfig, rules: Rules) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes over which sequences, and positions, count together for one capacity."""
    if config.capacity_scope == "global":
        return rules.batch, rules.seq
    return tuple(a for a in rules.batch if a in rules.expert), tuple(a for a in rules.seq if a in rules.expert)


def _gather(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return collectives.all_gather(x, axes) if axes else x[None]


def _index(axes: tuple[str, ...]) -> jax.Array | int:
    return lax.axis_index(axes) if axes else 0
