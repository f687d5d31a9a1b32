"""Tokens to their experts and back: rows sorted by expert, one buffer of fixed size for each expert shard.

    send: (expert shards, buffer, D)  --over `expert`-->  sort by expert, compute, unsort  --over `expert`-->

Experts are split over `tensor` as well, so every tensor shard needs whole rows; but each sends only its slice of D over
`expert`, and rows are made whole over `tensor` after it (and summed back into slices before the return), because
`tensor` is the fast axis. What goes over `expert` goes by a transport (`transports.py`). All row movements are gathers
in both directions (`rows.py`).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.parallel.experts.router import count, expert_capacity
from mm01_jax.parallel.experts.rows import in_block, move_rows, permutation_by
from mm01_jax.parallel.experts.transports import Transport


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Static sizes of the exchange.

    groups: that a device's tokens are cut into; all else is of one of them. tokens: of it, on one device.
    shards: expert shards. experts: on each of them. send: rows that one device may send to one of them.
    per_expert: rows that one expert may receive. multiple: of what an expert's rows are filled up to (`row_multiple`).
    """

    groups: int
    tokens: int
    shards: int
    experts: int
    send: int
    per_expert: int
    multiple: int = 1

    @classmethod
    def of(
        cls,
        device_tokens: int,
        config: ModelConfig,
        compute: ComputeConfig,
        rules: Rules,
        axis_size: Callable[[str], int] = lax.axis_size,
    ) -> "Buffers":
        """For so many tokens on every device, inside `shard_map` or, with the sizes of a mesh config's axes, outside.

        The worst case is every token choosing as many experts of one shard as it can; `dropless_bound` is a multiple
        of the balanced load instead, and in capacity mode an expert's capacity bounds both.
        """
        groups = math.gcd(compute.exchange_groups, device_tokens)  # a few tokens (decode) are not worth cutting
        tokens, shards = device_tokens // groups, math.prod(map(axis_size, rules.expert))
        experts, A = config.num_experts // shards, config.num_experts_per_token
        send = tokens * min(A, experts)
        per_expert = shards * min(tokens, send)
        if (bound := compute.dropless_bound) is not None:
            send = min(send, math.ceil(bound * tokens * A / shards))
            per_expert = min(shards * min(tokens, send), math.ceil(bound * tokens * A * shards / config.num_experts))
        if config.routing == "capacity":
            capacity = expert_capacity(config, rules, device_tokens, axis_size)
            send, per_expert = min(send, experts * capacity), min(per_expert, capacity)
        return cls(groups, tokens, shards, experts, send, per_expert)

    def filled_up(self, rows: int) -> int:
        """Length of an array that holds so many rows, every expert's filled up to the multiple."""
        return -(-(rows + self.experts * (self.multiple - 1)) // self.multiple) * self.multiple


def compute_here(x_TD, choice_TA, weight_TA, experts, buffers: Buffers, rules: Rules):
    """Without an exchange, all experts being here: (y (T, D / shards of ffn), overflow int32)."""
    T, A = choice_TA.shape
    order, place = permutation_by(choice_TA.reshape(-1))
    sizes = count(choice_TA.reshape(-1), buffers.experts)
    filled, shift = _filled_sizes(sizes, buffers)
    if buffers.multiple > 1:
        order, place = _spread(order, place, choice_TA.reshape(-1), sizes, shift, buffers)
    rows = move_rows(x_TD, order // A, place.reshape(T, A))
    out = experts(rows, filled, buffers)
    out_TAD = move_rows(out, place, order[:, None]).reshape(T, A, -1)
    y_TD = _combine(out_TAD, weight_TA)
    if rules.ffn:
        y_TD = lax.psum_scatter(y_TD, rules.ffn, scatter_dimension=1, tiled=True)
    return y_TD, jnp.sum(jnp.maximum(sizes - buffers.per_expert, 0))


def _filled_sizes(sizes: jax.Array, buffers: Buffers) -> tuple[jax.Array, jax.Array]:
    """(every expert's rows filled up to the multiple, how far that shifts them), (experts,) both."""
    filled = -(-sizes // buffers.multiple) * buffers.multiple
    return filled, jnp.cumsum(filled - sizes) - (filled - sizes)


def _spread(order, place, choice, sizes, shift, buffers: Buffers) -> tuple[jax.Array, jax.Array]:
    """`permutation_by(choice)` with each expert's rows shifted: (assignment in each row, row of each assignment)."""
    R, none = buffers.filled_up(order.size), order.size
    index, starts = jnp.arange(R, dtype=jnp.int32), jnp.cumsum(sizes) - sizes
    held = index + in_block(index, starts + shift, starts + shift + sizes, -shift, none)
    place = jnp.where(choice < buffers.experts, place + shift.at[choice].get(mode="clip"), R)
    return order.at[held].get(mode="fill", fill_value=none), place


def exchange_and_compute(x_TD, choice_TA, weight_TA, experts, buffers: Buffers, rules: Rules, *, transport: Transport):
    """The round trip over `expert` by a transport: (y (T, D / shards of ffn), overflow int32)."""
    T, A = choice_TA.shape
    to_shard = count(choice_TA.reshape(-1), buffers.shards * buffers.experts).reshape(buffers.shards, buffers.experts)
    assignment, slot = _send_slots(choice_TA, to_shard, buffers)
    sent = move_rows(_slice(x_TD, rules.ffn), assignment // A, slot)
    sizes = _received_sizes(lax.all_to_all(to_shard, rules.expert, split_axis=0, concat_axis=0, tiled=True), buffers)
    there = jnp.minimum(to_shard.sum(axis=1, dtype=jnp.int32), buffers.send)  # rows to each shard, and from it
    here = sizes.sum(axis=1, dtype=jnp.int32)
    received = transport(sent.reshape(buffers.shards, buffers.send, -1), there, here, rules.expert)
    if rules.ffn:
        received = lax.all_gather(received, rules.ffn, axis=2, tiled=True)
    computed, late = _compute_received(received, sizes, experts, buffers)
    if rules.ffn:
        computed = lax.psum_scatter(computed, rules.ffn, scatter_dimension=2, tiled=True)
    returned = transport(computed, here, there, rules.expert).reshape(sent.shape)
    out_TAD = move_rows(returned, slot.reshape(-1), assignment[:, None]).reshape(T, A, -1)
    unsent = jnp.sum(jnp.maximum(to_shard.sum(axis=1) - buffers.send, 0))
    return _combine(out_TAD, weight_TA), unsent + late


def _combine(out_TAD: jax.Array, weight_TA: jax.Array) -> jax.Array:
    wide = out_TAD.astype(np.promote_types(out_TAD.dtype, weight_TA.dtype))
    return jnp.sum(wide * weight_TA[:, :, None], axis=1).astype(out_TAD.dtype)


def _slice(x_TD: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """This shard's part of D."""
    if not axes:
        return x_TD
    width = x_TD.shape[1] // math.prod(lax.axis_size(axis) for axis in axes)
    return lax.dynamic_slice_in_dim(x_TD, lax.axis_index(axes) * width, width, axis=1)


def _send_slots(choice_TA: jax.Array, to_shard: jax.Array, buffers: Buffers) -> tuple[jax.Array, jax.Array]:
    """(assignment in each slot (shards * send,), slot of each assignment (T, A)); out of range where there is none."""
    T, A = choice_TA.shape
    order, place = permutation_by(choice_TA.reshape(-1))
    rows = to_shard.sum(axis=1, dtype=jnp.int32)
    start = jnp.cumsum(rows) - rows
    index = jnp.arange(buffers.send, dtype=jnp.int32)
    source = jnp.where(index[None, :] < rows[:, None], start[:, None] + index[None, :], T * A)
    assignment = order.at[source.reshape(-1)].get(mode="fill", fill_value=T * A)
    none = buffers.shards * buffers.send
    shift = jnp.arange(buffers.shards, dtype=jnp.int32) * buffers.send - start
    sent_end = start + jnp.minimum(rows, buffers.send)
    slot = place + in_block(place, start, sent_end, shift, none)
    return assignment, slot.reshape(T, A)


def _received_sizes(counts: jax.Array, buffers: Buffers) -> jax.Array:
    """Rows from each sender for each expert here, (shards, experts): what fitted the sender's buffer."""
    ends = jnp.minimum(jnp.cumsum(counts, axis=1, dtype=jnp.int32), buffers.send)
    return jnp.diff(ends, axis=1, prepend=0)


def _compute_received(received, sizes, experts, buffers: Buffers):
    """Experts applied to buffers (shards, send, D) whose rows are sorted by expert; same layout back, and overflow.

    Where each row stands when all senders' rows are sorted by expert follows from the counts: no sort.
    """
    R, D = buffers.shards * buffers.send, received.shape[-1]
    per_expert = sizes.sum(axis=0, dtype=jnp.int32)
    filled, shift = _filled_sizes(per_expert, buffers)
    end_in_buffer = jnp.cumsum(sizes, axis=1)
    first_slot = jnp.arange(buffers.shards, dtype=jnp.int32)[:, None] * buffers.send + end_in_buffer - sizes
    by_expert = jnp.swapaxes(sizes, 0, 1).reshape(-1)
    end_sorted = jnp.cumsum(by_expert) + jnp.repeat(shift, buffers.shards)
    start_sorted = end_sorted - by_expert
    first_slot_sorted = jnp.swapaxes(first_slot, 0, 1).reshape(-1)
    index = jnp.arange(R, dtype=jnp.int32)
    row = jnp.arange(buffers.filled_up(R), dtype=jnp.int32)
    source = row + in_block(row, start_sorted, end_sorted, first_slot_sorted - start_sorted, R)
    place = index + in_block(
        index,
        first_slot_sorted,
        first_slot_sorted + by_expert,
        start_sorted - first_slot_sorted,
        row.size,
    )
    rows = move_rows(received.reshape(R, D), source, place[:, None])
    out = move_rows(experts(rows, filled, buffers), place, source[:, None])
    return out.reshape(received.shape), jnp.sum(jnp.maximum(per_expert - buffers.per_expert, 0))
