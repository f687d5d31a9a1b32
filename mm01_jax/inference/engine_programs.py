"""The programs of the engine: all that ever runs on the devices, each of one fixed shape, compiled once at the start.

A matmul's row has other bits when the number of rows is another (XLA:CPU at width 1,024: 1, 2 and 4 rows give three
results), but not when its place or its neighbours are. So a request's bits follow from its tokens alone as long as
every call has the same shape: prefill runs pieces of `grid` tokens in a loop whose body never changes, decode always
has all slots.

    prefill   some pieces of one request on each shard of the rows      decode   up to `steps` tokens of every slot
    get_row, put_row      a slot whole: preempt, clear, poison
    get_piece             what a slot's layers hold of each position of a piece (keys and values), its page, and what
                          they hold of all tokens together (lightning), its states
    put_page, put_state   either into a slot; put_pages many
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import ModelConfig, Rules
from mm01_jax.inference import sampling
from mm01_jax.inference.engine_images import SeenAt
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.inference.sampling import History, Rows
from mm01_jax.inference.steps import take_in
from mm01_jax.model.cache import DecodeCache, RowLayout, Window, put_rows, take_rows
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import cache_specs, empty_cache, mixer


class Slots(NamedTuple):
    """All that the running requests have on the devices; every leaf has a row a slot.

    hidden_BD: final hidden of the last token taken in. place_B: int32, which place of the cache is position 0.
    number_B: int32, new tokens drawn so far. left_B: int32, those that may come yet, 0 when a row has ended. stop_BK:
    int32, ids that end it, -1: none. tokens_BT: int32, all that were taken in, by position, then those expected, then
    -1; T is 1 where nothing is guessed from them (an empty array is a fault of XLA).
    """

    cache: DecodeCache
    hidden_BD: jax.Array
    place_B: jax.Array
    number_B: jax.Array
    left_B: jax.Array
    stop_BK: jax.Array
    rows: Rows
    history: History
    tokens_BT: jax.Array


def empty_slots(config: ModelConfig, compute, rules: Rules, sizes: Sizes) -> Slots:
    """Slots of no request, sharded at birth (under jit)."""
    B, V = sizes.num_slots, config.vocab_size
    slots = Slots(
        empty_cache(config, compute, rules, B, sizes.max_length),
        jnp.zeros((B, config.embed_dim), compute.dtype),
        jnp.zeros((B,), jnp.int32),
        jnp.zeros((B,), jnp.int32),
        jnp.zeros((B,), jnp.int32),
        jnp.full((B, sizes.stop_ids), -1, jnp.int32),
        jax.tree.map(jnp.asarray, sampling.rows([sampling.Sampling()] * B, [0] * B)),
        sampling.empty_history(B, V),
        # XLA for GPUs (jaxlib 0.11.2) dies in compiling where several devices slice an empty array beside others.
        jnp.zeros((B, sizes.max_length if sizes.drafts else 1), jnp.int32),
    )
    return constrain(slots, slot_specs(slots, config, rules))


def slot_specs(slots: Slots, config: ModelConfig, rules: Rules) -> Slots:
    """The PartitionSpec of every leaf: rows over the batch's axes, the cache as its mixers say."""
    others = jax.tree.map(lambda leaf: sharding.spec(rules, "batch", *[None] * (leaf.ndim - 1)), slots[1:])
    return Slots(cache_specs(config, rules), *others)


def row_layout(slots: Slots, config: ModelConfig, rules: Rules, row_rules: Rules) -> RowLayout:
    """How rows of `slots`, which lie by `rules`, lie by `row_rules`."""
    axes = jax.tree.map(lambda _: 0, slots)
    axes = axes._replace(cache=DecodeCache(jax.tree.map(lambda _: 2, slots.cache.stacks), 0))
    reduced = tuple(axis for axis in rules.batch if axis not in row_rules.batch)
    specs = slot_specs(slots, config, rules), slot_specs(slots, config, row_rules)
    return RowLayout(axes, *specs, reduced, row_rules.batch)


def constrain(tree, specs):
    return jax.tree.map(lax.with_sharding_constraint, tree, specs)


def everywhere(tree):
    """Arrays whole on every device, so that each process can read them."""
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, jax.P()), tree)


@functools.partial(jax.jit, static_argnums=1)
def allowed_ids(model, vocab_size: int) -> jax.Array:
    """(V,) bool: ids that a text may have, which are those of the tokenizer whose embedding is not 0 (model.md A.7)."""
    trained_V = jnp.any(model.embed[...] != 0, axis=1)
    return everywhere(trained_V & (jnp.arange(trained_V.shape[0]) < vocab_size))


class Told(NamedTuple):
    """What prefill takes in: the next `count` tokens of one slot on each shard of the rows; 0 changes nothing.

    index_R: the slot, counted from the first of the shard. tokens_RS: S = pieces * grid + 1, the last of them what
    follows. trips_2: int32, how often the wide and the narrow body run; the tokens begin with those of the wide one.
    says: bool, whether log-probabilities are wanted. seen: what images show at the tokens; None: no images are taken.
    """

    index_R: jax.Array
    tokens_RS: jax.Array
    count_R: jax.Array
    trips_2: jax.Array
    says: jax.Array
    seen: SeenAt | None = None


class Said(NamedTuple):
    """Log-probabilities of what follows each token (R, S), and of the likeliest with their ids (R, S, T); experts that
    each was routed to (R, S, L, A) where kept."""

    logprobs: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array
    routed: jax.Array | None


def said_like(sizes: Sizes) -> Said:
    """The structure of what prefill of such an engine says: 0 for each array."""
    return Said(0, 0, 0, 0 if sizes.routed_experts else None)


def empty_routed(shape: tuple[int, int], config: ModelConfig) -> jax.Array:
    """int32 (*shape, L, A), an id that no expert has."""
    experts = config.num_layers, config.num_experts_per_token
    return jnp.full((*shape, *experts), config.num_experts, jnp.int32)


def prefill(model: TextModel, slots: Slots, allowed_V, told: Told, *, sizes: Sizes, layout: RowLayout):
    """Takes in tokens: (slots, Said, zeros where nobody wants it)."""
    moved, *part = (Slots(*tree[:3], *[None] * 6) for tree in (slots, layout.axes, layout.whole, layout.part))
    part = layout._replace(axes=part[0], whole=part[1], part=part[2])
    R, S, T = len(told.count_R), sizes.pieces * sizes.grid, sizes.logprobs
    routed = empty_routed((R, S), model.config) if sizes.routed_experts else None
    said = Said(jnp.zeros((R, S)), jnp.zeros((R, S, T), jnp.int32), jnp.zeros((R, S, T)), routed)
    carry = take_rows(moved, told.index_R, part), said
    width = sizes.wide * sizes.grid
    body = functools.partial(_piece, model, allowed_V, told)
    if sizes.wide > 1:
        carry = lax.fori_loop(0, told.trips_2[0], functools.partial(body, (jnp.int32(0), width, sizes.grid)), carry)
    first = told.trips_2[0] * width if sizes.wide > 1 else jnp.int32(0)
    carry, said = lax.fori_loop(0, told.trips_2[1], functools.partial(body, (first, sizes.grid, sizes.grid)), carry)
    moved = put_rows(moved, carry, told.index_R, part)
    slots = slots._replace(cache=moved.cache, hidden_BD=moved.hidden_BD)
    return constrain(slots, layout.whole), everywhere(said)


def _piece(model, allowed_V, told: Told, place, trip, carry: tuple[Slots, Said]) -> tuple[Slots, Said]:
    """One body of the loop: `width` tokens of each row from `first + trip * width` on."""
    (first, width, grid), (slots, said) = place, carry
    (cache, hidden_RD, place_R), start = slots[:3], first + trip * width
    tokens = lax.dynamic_slice_in_dim(told.tokens_RS, start, width, axis=1)
    tokens = sharding.constrain(tokens, model.rules, "batch", "seq")
    count_R = jnp.clip(told.count_R - start, 0, width)
    hidden_RWD, last, new, stats = take_in(model, cache, embedded(model, tokens, told.seen, start), count_R, place_R)
    say = functools.partial(_said, model, allowed_V, told.tokens_RS, (start, grid))
    said = lax.cond(told.says, say, lambda hidden, said: said, hidden_RWD, said)
    if said.routed is not None:
        choice = jnp.transpose(stats.choice, (1, 2, 0, 3))  # of (L, R, W, A)
        said = said._replace(routed=lax.dynamic_update_slice_in_dim(said.routed, choice, start, axis=1))
    if len(count_R) > 1:  # one row alone has something in every body
        new = kept_where_empty(model.config, count_R, new, cache)
    new = constrain(new, cache_specs(model.config, model.rules))
    return slots._replace(cache=new, hidden_BD=jnp.where((count_R > 0)[:, None], last, hidden_RD)), said


def embedded(model, tokens_RW: jax.Array, seen: SeenAt | None, start: jax.Array) -> jax.Array:
    """Embeddings of tokens from `start` on, or what images show there."""
    x = model.embed_tokens(tokens_RW)
    if seen is None:
        return x
    shown, is_seen = (lax.dynamic_slice_in_dim(part, start, tokens_RW.shape[1], axis=1) for part in seen)
    x = jnp.where(is_seen[..., None], shown.astype(x.dtype), x)
    return sharding.constrain(x, model.rules, "batch", "seq", "act_embed")


def _said(model, allowed_V, tokens_RS, place, hidden_RWD, said: Said) -> Said:
    """With what the model says after each of these tokens, which begin at `start`, of `grid` of them at a time."""
    (start, grid), (R, W, _) = place, hidden_RWD.shape
    hidden_RWD = sharding.constrain(hidden_RWD, model.rules, "batch", None, None)

    def one(number, said: Said) -> Said:
        hidden = lax.dynamic_slice_in_dim(hidden_RWD, number * grid, grid, axis=1)
        at = start + number * grid
        following = lax.dynamic_slice_in_dim(tokens_RS, at + 1, grid, axis=1).reshape(R * grid)
        logits = sharding.constrain(model.logits(hidden), model.rules, "batch", None, None)
        found = sampling.log_probabilities(logits.reshape(R * grid, -1), following, allowed_V, said.top_ids.shape[2])
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=at, axis=1)
        new = (put(all, one.reshape(R, grid, *one.shape[1:])) for all, one in zip(said[:3], found, strict=True))
        return Said(*new, said.routed)

    return lax.fori_loop(0, W // grid, one, said)


def kept_where_empty(config: ModelConfig, count_R, new: DecodeCache, old: DecodeCache) -> DecodeCache:
    """States of rows without a token as they were: a state plus zero would lose the sign of its zeros."""

    def choose(kind, new, old):
        if mixer(kind, config).position_axis is not None:
            return new  # nothing was written
        is_empty = jnp.expand_dims(count_R == 0, (0, 1, *range(3, new.ndim)))
        return jnp.where(is_empty, old, new)

    kinds = [kind for kind, _ in config.stacks]
    stacks = [
        jax.tree.map(functools.partial(choose, kind), *pair)
        for kind, *pair in zip(kinds, new.stacks, old.stacks, strict=True)
    ]
    return DecodeCache(tuple(stacks), new.lengths)


def _single(slots: Slots, layout: RowLayout, index):
    return take_rows(slots, index[None], layout)


def get_row(slots: Slots, index, *, layout: RowLayout) -> Slots:
    """A copy of one slot, on every shard of the rows; leaves have a row axis of 1."""
    return constrain(_single(slots, layout, index), layout.part)


def put_row(slots: Slots, row: Slots, index, *, layout: RowLayout) -> Slots:
    """A slot that is what `get_row` gave."""
    return constrain(put_rows(slots, row, index[None], layout), layout.whole)


def get_state(slots: Slots, index, *, config: ModelConfig, layout: RowLayout) -> tuple:
    """What the slot's layers hold of all its tokens together: a pytree a stack, None where they hold positions."""
    tree, part = stacks(slots, layout, config, positions=False)
    return constrain(take_rows(tree, index[None], part), part.part)


def get_piece(slots: Slots, index, start, *, size: int, config: ModelConfig, layout: RowLayout) -> tuple[tuple, tuple]:
    """(the slot's page from `start` on, its states)."""
    at = {"config": config, "layout": layout}
    return get_page(slots, index, start, size=size, **at), get_state(slots, index, **at)


def put_state(slots: Slots, state: tuple, index, length, *, config: ModelConfig, layout: RowLayout) -> Slots:
    """The slot with such states, after `length` tokens."""
    tree, part = stacks(slots, layout, config, positions=False)
    new = put_rows(tree, state, index[None], part)
    cache = DecodeCache(_merged(slots, new), slots.cache.lengths.at[index].set(length))
    return constrain(slots._replace(cache=cache), layout.whole)


def get_page(slots: Slots, index, start, *, size: int, config: ModelConfig, layout: RowLayout) -> tuple:
    """What the slot's layers hold of `size` positions from `start` on; None where they hold none."""
    tree, part = stacks(slots, layout, config, positions=True)
    return constrain(take_rows(tree, index[None], part, _window(config, start, size)), part.part)


def put_page(slots: Slots, page: tuple, index, start, *, size: int, config: ModelConfig, layout: RowLayout) -> Slots:
    """The slot with such a page at `start`."""
    tree, part = stacks(slots, layout, config, positions=True)
    new = put_rows(tree, page, index[None], part, _window(config, start, size))
    return constrain(slots._replace(cache=DecodeCache(_merged(slots, new), slots.cache.lengths)), layout.whole)


def put_pages(slots: Slots, pages: tuple, index, start, *, size: int, config: ModelConfig, layout: RowLayout) -> Slots:
    """The slot with pages of `size` in a row from `start` on: a call costs a host as much as one of a page."""
    page = jax.tree.map(lambda *parts: jnp.concatenate(parts, _position_axis(config)), *pages)
    return put_page(slots, page, index, start, size=len(pages) * size, config=config, layout=layout)


def _window(config: ModelConfig, start, size: int) -> Window:
    return Window(start, size, _position_axis(config))


def _position_axis(config: ModelConfig) -> int:
    axes = {mixer(kind, config).position_axis for kind, _ in config.stacks} - {None}
    return max(axes, default=0)  # one axis, or no layer that holds positions


def stacks(slots: Slots, layout: RowLayout, config: ModelConfig, *, positions: bool) -> tuple[tuple, RowLayout]:
    """The stacks whose layers hold positions, or those whose do not, None for the others; and their layout."""

    def of(tree: Slots) -> tuple:
        kinds = [(mixer(kind, config).position_axis is not None) == positions for kind, _ in config.stacks]
        return tuple(stack if fits else None for stack, fits in zip(tree.cache.stacks, kinds, strict=True))

    return of(slots), layout._replace(axes=of(layout.axes), whole=of(layout.whole), part=of(layout.part))


def _merged(slots: Slots, new: tuple) -> tuple:
    """The slots' stacks, those of `new` in their places."""
    return tuple(old if stack is None else stack for old, stack in zip(slots.cache.stacks, new, strict=True))
