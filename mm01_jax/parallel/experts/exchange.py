"""Tokens to their experts and back: rows sorted by expert, one buffer of fixed size for each expert shard.

    send: (expert shards, buffer, D)  --over `expert`-->  sort by expert, compute, unsort  --over `expert`-->

Experts are split over `tensor` as well, so every tensor shard needs whole rows; but each sends only its slice of D over
`expert`, and rows are made whole over `tensor` after it (and summed back into slices before the return), because
`tensor` is the fast axis. What goes over `expert` goes by a transport (`transports.py`). All row movements are gathers
in both directions (`rows.py`).

Two senders of five tokens, one choice each; experts 0 and 1 are on shard 0, 2 and 3 on shard 1; three slots a shard:

    sender                       0                            1
    token                        a  b  c  d  e                v  w  x  y  z
    choice                       1  0  3  1  1                0  3  1  2  3
    sorted by expert             b  a  d  e  c                v  x  y  w  z
    slots, shard 0 | shard 1     b  a  d | c  .  .            v  x  . | y  w  z        e does not fit: overflow 1
    assignment of each slot      1  0  3 | 2  -  -            0  2  - | 3  1  4
    slot of each assignment      1  0  3  2  -                0  4  1  3  5

    shard 0 receives             b  a  d | v  x  .            from each sender, rows for each expert: 1 2 | 1 1
    row of each slot             0  2  3 | 1  4  -
    rows by expert               b  v  a  d  x  .             expert 0 has two, expert 1 three
    slot of each row             0  3  1  2  4  -
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.parallel import collectives
from mm01_jax.parallel.experts.router import count, expert_capacity
from mm01_jax.parallel.experts.rows import in_block, move_rows, permutation_by, sum_rows
from mm01_jax.parallel.experts.transports import Transport
from pallas_kernels.kept import RETURNED, ROUTED, keep


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Static sizes of the exchange.

    groups: into which a device's tokens are cut; every other field is of one group. tokens: of a group on one device.
    shards: expert shards. send: slots, rows that one device may send to one shard. per_expert: rows that one expert may
    receive. multiple: of what an expert's rows are filled up to (`row_multiple`).
    """

    groups: int
    tokens: int
    shards: int
    experts_per_shard: int
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
        experts_per_shard, A = config.num_experts // shards, config.num_experts_per_token
        send = tokens * min(A, experts_per_shard)
        per_expert = shards * min(tokens, send)
        if (bound := compute.dropless_bound) is not None:
            shard_bound = bound if compute.dropless_shard_bound is None else compute.dropless_shard_bound
            send = min(send, math.ceil(shard_bound * tokens * A / shards))
            per_expert = min(shards * min(tokens, send), math.ceil(bound * tokens * A * shards / config.num_experts))
        if config.routing == "capacity":
            capacity = expert_capacity(config, rules, device_tokens, axis_size)
            send, per_expert = min(send, experts_per_shard * capacity), min(per_expert, capacity)
        return cls(groups, tokens, shards, experts_per_shard, send, per_expert)

    def filled_up(self, rows: int) -> int:
        """Length of an array that holds so many rows, every expert's filled up to the multiple."""
        return -(-(rows + self.experts_per_shard * (self.multiple - 1)) // self.multiple) * self.multiple


@jax.named_scope("exchange")
def compute_without_exchange(x_TD, choice_TA, weight_TA, apply_experts, buffers: Buffers, rules: Rules):
    """The experts of this device on tokens that are all here, `experts_per_shard` for a choice that is another's:
    (y (T, D / shards of ffn), overflow int32).
    """
    (T, A), none = choice_TA.shape, choice_TA.size
    assignment_of_row, row_of_assignment = permutation_by(choice_TA.reshape(-1), buffers.experts_per_shard + 1)
    sizes = count(choice_TA.reshape(-1), buffers.experts_per_shard)
    filled_sizes, shift = _filled_sizes(sizes, buffers)
    rows = buffers.filled_up(min(none, buffers.shards * buffers.send))
    if buffers.multiple > 1:
        assignment_of_row, row_of_assignment = _spread(
            assignment_of_row, row_of_assignment, choice_TA.reshape(-1), sizes, shift, rows
        )
    else:
        assignment_of_row = assignment_of_row[:rows]
    unheld = jnp.sum((choice_TA.reshape(-1) < buffers.experts_per_shard) & (row_of_assignment >= rows))
    assignment_of_row, row_of_assignment = keep(assignment_of_row, ROUTED), keep(row_of_assignment, ROUTED)
    weight_R = None
    if buffers.multiple > 1:
        # The Hopper kernel multiplies by the router's weight where it makes an expert's hidden rows: the gradient then
        # needs no output row, so a forward pass that is computed again for it stops before the last product.
        weight_R = move_rows(weight_TA.reshape(-1, 1), assignment_of_row, row_of_assignment[:, None])[:, 0]
    token_of_row, row_TA = assignment_of_row // A, row_of_assignment.reshape(T, A)
    out = apply_experts(move_rows(x_TD, token_of_row, row_TA), filled_sizes, buffers, weight_R)
    if weight_R is None:
        y_TD = _combine(move_rows(out, row_of_assignment, assignment_of_row[:, None]).reshape(T, A, -1), weight_TA)
    else:
        y_TD = sum_rows(out, row_TA, token_of_row)
    if rules.ffn:
        y_TD = collectives.psum_scatter(y_TD, rules.ffn, 1)
    return y_TD, unheld + jnp.sum(jnp.maximum(sizes - buffers.per_expert, 0))


def _filled_sizes(sizes: jax.Array, buffers: Buffers) -> tuple[jax.Array, jax.Array]:
    """(every expert's rows filled up to the multiple, how far that shifts them), (experts_per_shard,) both."""
    filled = -(-sizes // buffers.multiple) * buffers.multiple
    return filled, jnp.cumsum(filled - sizes) - (filled - sizes)


def _spread(order, place, choice, sizes, shift, rows: int) -> tuple[jax.Array, jax.Array]:
    """`permutation_by(choice)` with each expert's rows shifted: (assignment of each row, row of each assignment)."""
    row, starts, none = jnp.arange(rows, dtype=jnp.int32), jnp.cumsum(sizes) - sizes, order.size
    place_of_row = row + in_block(row, starts + shift, starts + shift + sizes, -shift, none)
    row_of_assignment = jnp.where(choice < sizes.size, place + shift.at[choice].get(mode="clip"), rows)
    return order.at[place_of_row].get(mode="fill", fill_value=none), row_of_assignment


@jax.named_scope("exchange")
def gather_and_compute(x_TD, choice_TA, weight_TA, apply_experts, buffers: Buffers, rules: Rules):
    """What `exchange_and_compute` gives, without buffers on the way: every shard takes all tokens in, and what its
    experts add to them is summed out. With as many choices a token as shards an exchange sends as much, and moves every
    row twice more.
    """
    x_TD = _slice(x_TD, rules.ffn)
    tokens = x_TD, choice_TA, weight_TA
    x_TD, choice_TA, weight_TA = (collectives.all_gather(x, rules.expert, tiled=True) for x in tokens)
    if rules.ffn:
        x_TD = collectives.all_gather(x_TD, rules.ffn, axis=1, tiled=True)
    own_TA = choice_TA - lax.axis_index(rules.expert) * buffers.experts_per_shard
    own_TA = jnp.where((own_TA >= 0) & (own_TA < buffers.experts_per_shard), own_TA, buffers.experts_per_shard)
    y_TD, overflow = compute_without_exchange(x_TD, own_TA, weight_TA, apply_experts, buffers, rules)
    return collectives.psum_scatter(y_TD, rules.expert, 0), overflow


@jax.named_scope("exchange")
def exchange_and_compute(
    x_TD, choice_TA, weight_TA, apply_experts, buffers: Buffers, rules: Rules, *, transport: Transport
):
    """The round trip over `expert` by a transport: (y (T, D / shards of ffn), overflow int32).

    apply_experts(rows sorted by expert, each expert's number of them, buffers, each row's weight or None) -> rows.
    """
    T, A = choice_TA.shape
    chosen = count(choice_TA.reshape(-1), buffers.shards * buffers.experts_per_shard)
    chosen = chosen.reshape(
        buffers.shards, buffers.experts_per_shard
    )  # assignments of this device to every shard's experts
    assignment_of_slot, slot_of_assignment = (keep(x, ROUTED) for x in _send_slots(choice_TA, chosen, buffers))
    slots = move_rows(_slice(x_TD, rules.ffn), assignment_of_slot // A, slot_of_assignment)
    arriving = _arriving(collectives.all_to_all(chosen, rules.expert), buffers)
    num_sent = jnp.minimum(chosen.sum(axis=1, dtype=jnp.int32), buffers.send)  # rows to each shard, later back from it
    num_received = arriving.sum(axis=1, dtype=jnp.int32)
    slots_shape = (buffers.shards, buffers.send)
    received = transport(slots.reshape(*slots_shape, -1), num_sent, num_received, rules.expert)
    if rules.ffn:
        received = collectives.all_gather(received, rules.ffn, axis=2, tiled=True)
    weight_S = None
    if buffers.multiple > 1:
        # As on one device: with their weights rows come back as they are added up, and a forward pass that is computed
        # again has no way back.
        weight_S = move_rows(weight_TA.reshape(-1, 1), assignment_of_slot, slot_of_assignment.reshape(-1, 1))
        weight_S = collectives.all_to_all(weight_S.reshape(*slots_shape, 1), rules.expert)
    computed, beyond_bound = _compute_received(received, arriving, weight_S, apply_experts, buffers)
    if rules.ffn:
        computed = collectives.psum_scatter(computed, rules.ffn, 2)
    returned = transport(computed, num_received, num_sent, rules.expert).reshape(slots.shape)
    unsent = jnp.sum(jnp.maximum(chosen.sum(axis=1) - buffers.send, 0))
    if weight_S is not None:
        return sum_rows(returned, slot_of_assignment, assignment_of_slot // A), unsent + beyond_bound
    out_TAD = move_rows(returned, slot_of_assignment.reshape(-1), assignment_of_slot[:, None]).reshape(T, A, -1)
    return _combine(out_TAD, weight_TA), unsent + beyond_bound


def _combine(out_TAD: jax.Array, weight_TA: jax.Array) -> jax.Array:
    """The sum of a token's outputs by its weights."""
    out_TAD = keep(out_TAD, RETURNED)  # the gradient of the weights reads it
    wide = out_TAD.astype(np.promote_types(out_TAD.dtype, np.float32))
    return jnp.sum(wide * weight_TA[:, :, None], axis=1).astype(out_TAD.dtype)


def _slice(x_TD: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """This shard's part of D."""
    if not axes:
        return x_TD
    width = x_TD.shape[1] // math.prod(lax.axis_size(axis) for axis in axes)
    return lax.dynamic_slice_in_dim(x_TD, lax.axis_index(axes) * width, width, axis=1)


def _send_slots(choice_TA: jax.Array, chosen: jax.Array, buffers: Buffers) -> tuple[jax.Array, jax.Array]:
    """(assignment of each slot (shards * send,), slot of each assignment (T, A)); out of range where there is none.

    chosen: (shards, experts_per_shard), assignments to every shard's experts.
    """
    T, A = choice_TA.shape
    # Sorted by expert, so by shard: a shard's stand together.
    order, place = permutation_by(choice_TA.reshape(-1), chosen.size + 1)
    to_shard = chosen.sum(axis=1, dtype=jnp.int32)
    first_place = jnp.cumsum(to_shard) - to_shard
    slot_in_part = jnp.arange(buffers.send, dtype=jnp.int32)
    is_used = slot_in_part[None, :] < to_shard[:, None]
    place_of_slot = jnp.where(is_used, first_place[:, None] + slot_in_part[None, :], T * A)
    assignment_of_slot = order.at[place_of_slot.reshape(-1)].get(mode="fill", fill_value=T * A)
    no_slot = buffers.shards * buffers.send
    first_slot = jnp.arange(buffers.shards, dtype=jnp.int32) * buffers.send
    end_place = first_place + jnp.minimum(to_shard, buffers.send)
    slot = place + in_block(place, first_place, end_place, first_slot - first_place, no_slot)
    return assignment_of_slot, slot.reshape(T, A)


def _arriving(chosen: jax.Array, buffers: Buffers) -> jax.Array:
    """Rows from each sender for each expert here, (shards, experts_per_shard): those that fit the sender's slots."""
    ends = jnp.minimum(jnp.cumsum(chosen, axis=1, dtype=jnp.int32), buffers.send)
    return jnp.diff(ends, axis=1, prepend=0)


def _compute_received(received, arriving, weight_S, apply_experts, buffers: Buffers):
    """Experts applied to slots (shards, send, D) whose rows are sorted by expert; same layout back, and overflow.

    weight_S: (shards, send, 1) float32, each slot's router weight, or None where they are multiplied by later.
    """
    per_expert = arriving.sum(axis=0, dtype=jnp.int32)
    filled_sizes, shift = _filled_sizes(per_expert, buffers)
    slot_of_row, row_of_slot = _rows_by_expert(arriving, shift, buffers)
    rows = move_rows(received.reshape(-1, received.shape[-1]), slot_of_row, row_of_slot[:, None])
    weight_R = None
    if weight_S is not None:
        weight_R = move_rows(weight_S.reshape(-1, 1), slot_of_row, row_of_slot[:, None])[:, 0]
    out = move_rows(apply_experts(rows, filled_sizes, buffers, weight_R), row_of_slot, slot_of_row[:, None])
    return out.reshape(received.shape), jnp.sum(jnp.maximum(per_expert - buffers.per_expert, 0))


def _rows_by_expert(arriving: jax.Array, shift: jax.Array, buffers: Buffers) -> tuple[jax.Array, jax.Array]:
    """(slot of each row, row of each slot), all senders' rows sorted by expert; out of range where there is none.

    It follows from the counts, without a sort: the rows of one sender for one expert are a block, which stands together
    in the sender's slots and among the expert's rows. shift: (experts_per_shard,), what filling up adds before each.
    """
    num_slots = buffers.shards * buffers.send
    end_in_part = jnp.cumsum(arriving, axis=1)
    first_slot = jnp.arange(buffers.shards, dtype=jnp.int32)[:, None] * buffers.send + end_in_part - arriving
    sizes = jnp.swapaxes(arriving, 0, 1).reshape(-1)  # of the blocks by expert, then by sender: as rows stand
    end_row = jnp.cumsum(sizes) + jnp.repeat(shift, buffers.shards)
    first_row = end_row - sizes
    first_slot = jnp.swapaxes(first_slot, 0, 1).reshape(-1)
    slot = jnp.arange(num_slots, dtype=jnp.int32)
    row = jnp.arange(buffers.filled_up(num_slots), dtype=jnp.int32)
    slot_of_row = row + in_block(row, first_row, end_row, first_slot - first_row, num_slots)
    row_of_slot = slot + in_block(slot, first_slot, first_slot + sizes, first_row - first_slot, row.size)
    return slot_of_row, row_of_slot
