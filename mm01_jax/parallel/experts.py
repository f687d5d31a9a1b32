"""The expert layer on a mesh: route, dispatch over `expert`, grouped matmul, combine (paper 2.1, 4.1; spec A.6, E).

Tokens are sharded over (data, expert) and sequence; experts over `expert`, their width over `tensor`. Each device
routes its own tokens, sorts the assignments by expert, sends each expert shard its rows in a buffer of fixed size
(`all_to_all`), computes on what it received, and sends the results back the same way.

Nothing is dropped silently. In dropless mode buffers hold the worst case, or a stated multiple of the balanced load;
rows beyond it are counted in `overflow` and the caller refuses the step. In capacity mode each expert keeps the first
`capacity` assignments of the whole global microbatch in the order (row, position, choice), the same on every mesh.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import ModelConfig, Rules
from pallas_kernels.grouped_matmul import grouped_matmul


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStats:
    """Sums over all tokens of the global batch that are not padding; equal on every device.

    assigned: (E,) float32, assignments the router made to each expert, dropped ones included.
    probability: (E,) float32, sum of router probabilities.
    z_square: float32, sum of logsumexp(router logits)^2.
    tokens: float32, number of tokens.
    dropped: float32, assignments dropped by capacity.
    overflow: float32, assignments that did not fit a stated dropless bound; a step with any must be refused.
    """

    assigned: jax.Array
    probability: jax.Array
    z_square: jax.Array
    tokens: jax.Array
    dropped: jax.Array
    overflow: jax.Array


def expert_layer(
    x_BSD: jax.Array,
    segments_BS: jax.Array,
    weights: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    *,
    config: ModelConfig,
    rules: Rules,
) -> tuple[jax.Array, RouterStats]:
    """x (B, S, D) -> (y (B, S, D), statistics).

    Args:
      weights: router (D, E), gate (E, D, F), up (E, D, F), down (E, F, D), in x's dtype.
    """
    tokens = sharding.spec(rules, "batch", "seq", None)
    inward, outward = sharding.spec(rules, "expert", None, "ffn"), sharding.spec(rules, "expert", "ffn", None)
    in_specs = (tokens, sharding.spec(rules, "batch", "seq"), (jax.P(), inward, inward, outward))
    local = functools.partial(_local, config=config, rules=rules)
    return jax.shard_map(local, in_specs=in_specs, out_specs=(tokens, jax.P()))(x_BSD, segments_BS, weights)


def _local(x_BSD, segments_BS, weights, *, config: ModelConfig, rules: Rules):
    router, *experts = weights
    B, S, D = x_BSD.shape
    x_TD, valid_T = x_BSD.reshape(B * S, D), (segments_BS >= 0).reshape(B * S)
    choice_TA, weight_TA, probability_TE, lse_T = _route(x_TD, router, config.num_experts_per_token)
    choice_TA = jnp.where(valid_T[:, None], choice_TA, config.num_experts)  # padding goes to no expert
    assigned = _count(choice_TA.reshape(-1), config.num_experts)
    kept_TA = choice_TA
    if config.routing == "capacity":
        kept_TA = _keep_first(choice_TA, (B, S), config, rules)
    y_TD, overflow = _dispatch_and_combine(x_TD, kept_TA, weight_TA, experts, config, rules)
    dropped = jnp.sum((choice_TA < config.num_experts) & (kept_TA == config.num_experts), dtype=jnp.float32)
    stats = RouterStats(
        assigned=assigned.astype(jnp.float32),
        probability=jnp.sum(jnp.where(valid_T[:, None], probability_TE, 0.0), axis=0),
        z_square=jnp.sum(jnp.where(valid_T, lse_T * lse_T, 0.0)),
        tokens=jnp.sum(valid_T, dtype=jnp.float32),
        dropped=dropped,
        overflow=overflow,
    )
    return y_TD.reshape(B, S, D), lax.psum(stats, (*rules.batch, *rules.seq))


def _route(x_TD: jax.Array, router_DE: jax.Array, num_assigned: int):
    """(expert ids (T, A), their weights (T, A), all probabilities (T, E), logsumexp (T,)); float32 from the logits on."""
    wide = jnp.promote_types(x_TD.dtype, jnp.float32)
    precision = "highest" if x_TD.dtype == jnp.float32 else "default"
    logits = jnp.einsum("td,de->te", x_TD, router_DE, precision=precision, preferred_element_type=wide)
    lse = jax.nn.logsumexp(logits, axis=-1)
    probability = jnp.exp(logits - lse[:, None])
    top, choice = lax.top_k(probability, num_assigned)
    return choice.astype(jnp.int32), top / jnp.sum(top, axis=-1, keepdims=True), probability, lse


def _count(choice: jax.Array, num_experts: int) -> jax.Array:
    """How often each expert id occurs: (..., n) -> (..., E) int32; ids outside [0, E) are not counted."""
    return jnp.sum(choice[..., None] == jnp.arange(num_experts), axis=-2, dtype=jnp.int32)


def _keep_first(choice_TA, shape: tuple[int, int], config: ModelConfig, rules: Rules) -> jax.Array:
    """Replaces choices beyond an expert's capacity by E; capacity and order are those of the global microbatch.

    Order is (row, position, choice rank). Counts per row are gathered over every axis that shards tokens: a few
    integers per row and expert (the paper's global router).
    """
    B, S = shape
    E, A = config.num_experts, config.num_experts_per_token
    axes = (*rules.batch, *rules.seq)
    choice = choice_TA.reshape(B, S * A)
    per_row = lax.all_gather(_count(choice, E), rules.batch, tiled=False)  # (batch shards, B, E)
    per_row = lax.all_gather(per_row, rules.seq, tiled=False)  # (seq shards, batch shards, B, E)
    ordered = jnp.moveaxis(per_row, 0, 2).reshape(-1, E)  # rows in global order, then sequence shards
    before = jnp.cumsum(ordered, axis=0) - ordered
    before = before.reshape(per_row.shape[1], B, per_row.shape[0], E)
    mine = before[lax.axis_index(rules.batch), :, lax.axis_index(rules.seq)]  # (B, E)
    one_hot = (choice[..., None] == jnp.arange(E)).astype(jnp.int32)
    rank = jnp.cumsum(one_hot, axis=1) - one_hot + mine[:, None, :]
    rank = jnp.sum(rank * one_hot, axis=-1)
    global_tokens = B * S * math.prod(lax.axis_size(axis) for axis in axes)
    capacity = math.ceil(config.capacity_factor * global_tokens * A / E)
    return jnp.where(rank < capacity, choice, E).reshape(choice_TA.shape)


def _dispatch_and_combine(x_TD, choice_TA, weight_TA, experts, config: ModelConfig, rules: Rules):
    """y (T, D) and the number of assignments of this device that did not fit (0 unless a bound is stated)."""
    shards = math.prod(lax.axis_size(axis) for axis in rules.expert)
    T, A = choice_TA.shape
    E = config.num_experts
    flat = choice_TA.reshape(-1)
    # lax.sort, not argsort: argsort's indices are typed as equal on all devices inside a checked shard_map, and
    # gathers through them get wrong gradients (jax 0.10 to 0.12).
    sorted_choice, order = lax.sort((flat, jnp.arange(T * A, dtype=jnp.int32) + 0 * flat), num_keys=1)
    counts_E = _count(flat, E)
    if shards == 1:
        capacity = _rows_per_expert(T, T, 1, config)
        out = _unsort(_expert_ffn(x_TD[order // A], counts_E, experts, capacity), order)
        overflow = jnp.sum(jnp.maximum(counts_E - capacity, 0)).astype(jnp.float32)
    else:
        out, overflow = _exchange(x_TD, sorted_choice, order, counts_E, experts, config, rules)
    out_TAD = jnp.where((choice_TA < E)[..., None], out.reshape(T, A, -1), jnp.zeros((), out.dtype))
    y_TD = jnp.einsum("tad,ta->td", out_TAD.astype(weight_TA.dtype), weight_TA)
    if rules.ffn:
        y_TD = lax.psum(y_TD, rules.ffn)  # each shard holds a slice of every expert's width
    return y_TD.astype(x_TD.dtype), overflow


def _exchange(x_TD, sorted_choice, order, counts_E, experts, config: ModelConfig, rules: Rules):
    """The round trip over the `expert` axis; returns one row per assignment, in assignment order, and overflow."""
    T, A = x_TD.shape[0], config.num_experts_per_token
    shards = math.prod(lax.axis_size(axis) for axis in rules.expert)
    per_shard = config.num_experts // shards
    buffer = _rows_per_buffer(T, A, per_shard, shards, config.dropless_bound)
    to_shard = counts_E.reshape(shards, per_shard)
    start = jnp.cumsum(to_shard.sum(1)) - to_shard.sum(1)
    slot = jnp.arange(buffer)
    fits = slot[None, :] < to_shard.sum(1)[:, None]  # (shards, buffer)
    source = jnp.where(fits, start[:, None] + slot[None, :], 0)
    sent = jnp.where(fits[..., None], x_TD[order[source] // A], jnp.zeros((), x_TD.dtype))
    exchange = functools.partial(lax.all_to_all, axis_name=rules.expert, split_axis=0, concat_axis=0, tiled=True)
    received, received_counts = exchange(sent), exchange(to_shard)
    computed, late = _compute_received(received, received_counts, experts, T, config)
    returned = exchange(computed).reshape(shards * buffer, -1)
    place = jnp.arange(T * A) - start[jnp.minimum(sorted_choice // per_shard, shards - 1)]
    row = jnp.minimum(sorted_choice // per_shard, shards - 1) * buffer + jnp.clip(place, 0, buffer - 1)
    kept = (place < buffer) & (sorted_choice < config.num_experts)
    rows = jnp.where(kept[:, None], returned[row], jnp.zeros((), returned.dtype))
    unsent = jnp.sum(jnp.maximum(to_shard.sum(1) - buffer, 0)).astype(jnp.float32)
    return _unsort(rows, order), unsent + late


def _rows_per_buffer(T: int, A: int, per_shard: int, shards: int, bound: float | None) -> int:
    """Rows one device may send to one expert shard: the worst case, or `bound` times the balanced share."""
    worst = T * min(A, per_shard)
    return worst if bound is None else min(worst, math.ceil(bound * T * A / shards))


def _compute_received(received, counts, experts, tokens: int, config: ModelConfig):
    """Experts applied to buffers (shards, buffer, D) whose rows are sorted by local expert; same layout back.

    counts (shards, local experts) may exceed a bounded buffer; what was not sent is counted by its sender. `tokens` is
    the number of tokens of one sender.
    """
    shards, buffer, D = received.shape
    ends = jnp.minimum(jnp.cumsum(counts, axis=1), buffer)
    sizes = jnp.diff(ends, axis=1, prepend=0)
    expert = jnp.sum(ends[:, None, :] <= jnp.arange(buffer)[None, :, None], axis=-1, dtype=jnp.int32)
    flat = expert.reshape(-1)  # per_shard marks an empty slot
    _, order = lax.sort((flat, jnp.arange(flat.size, dtype=jnp.int32) + 0 * flat), num_keys=1)
    capacity = _rows_per_expert(tokens, buffer, shards, config)
    rows = _expert_ffn(received.reshape(-1, D)[order], sizes.sum(0), experts, capacity)
    late = jnp.sum(jnp.maximum(sizes.sum(0) - capacity, 0)).astype(jnp.float32)
    return _unsort(rows, order).reshape(shards, buffer, -1), late


def _rows_per_expert(tokens: int, buffer: int, shards: int, config: ModelConfig) -> int:
    """Rows one expert may receive from `shards` senders of `tokens` tokens and `buffer` rows each.

    The worst case (a token chooses an expert at most once), or the stated multiple of the balanced load.
    """
    worst = min(tokens, buffer) * shards
    if config.dropless_bound is None or config.routing == "capacity":
        return worst
    balanced = tokens * shards * config.num_experts_per_token / config.num_experts
    return min(worst, math.ceil(config.dropless_bound * balanced))


def _expert_ffn(rows_RD, sizes_E, experts, capacity: int) -> jax.Array:
    """SwiGLU of each row by its group's expert; rows sorted by expert, rows after the last group are 0."""
    gate, up, down = experts
    multiply = functools.partial(grouped_matmul, capacity=capacity)
    hidden = jax.nn.silu(multiply(rows_RD, gate, sizes_E)) * multiply(rows_RD, up, sizes_E)
    return multiply(hidden, down, sizes_E)


def _unsort(rows: jax.Array, order: jax.Array) -> jax.Array:
    """rows[i] belongs at order[i]."""
    _, inverse = lax.sort((order, jnp.arange(order.size, dtype=jnp.int32) + 0 * order), num_keys=1)
    return rows[inverse]
