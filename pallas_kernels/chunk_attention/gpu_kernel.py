"""A chunk over a cache on Hopper: 128 queries of one head an item, keys and values streamed past them from the cache.

As `softmax_attention/gpu_forward.py` (the online softmax, two warpgroups that take turns), but without documents: what
a query sees follows from its place, so blocks before the chunk are never masked and no tags are read.

Items are tiles, those that see most first; of one tile the query heads stand beside each other. Where tiles see much
alike, or are many, these are the heads of one key head, and the other heads' tiles come after: all programs then stream
the same keys at the same time, and a block that one of them has read from memory is in L2 for the others. Where the
chunk is long beside what was there before it, they are all heads: else programs would not end together. A row's bits
follow from its query and its keys alone, wherever the chunk was cut: blocks begin at multiples of KEYS of the row's
places, and what is hidden adds 0.

Where a long cache meets a chunk of few tiles, as a prompt that is taken in between the steps of others' answers, an
item has a part of a tile's keys, of `splits`, which `gpu_parts.together` adds up. Parts follow from the tile's place.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared
from pallas_kernels.chunk_attention import gpu_parts
from pallas_kernels.chunk_attention.gpu_parts import KEYS
from pallas_kernels.softmax_attention import gpu_blocks as blocks
from pallas_kernels.softmax_attention.gpu_blocks import DOWN, HALF, LOW, TILE
from pallas_kernels.varying import vary_alike

STAGES = 3  # of the ring of keys and values
ALIKE = 3  # chunks before this one from which on its tiles see much alike: 4 % more work in one program than in another
MANY = 12  # items of a program and a key head from which on programs end together in any case
WGMMA = plgpu.Layout.WGMMA


class _Plan(NamedTuple):
    """What is fixed when the kernel is compiled."""

    items: int
    programs: int
    batch: int  # rows
    tiles: int  # of queries, of all rows
    kv_heads: int
    group: int  # query heads of a key head
    splits: int  # parts of a tile's keys


class _Inputs(NamedTuple):
    """What the programs read. A tile of queries is numbered b * (S / TILE) + its place."""

    beside: jax.Ref  # int32 (1,), query heads of a tile that stand beside each other
    counts: jax.Ref  # int32 (B,), queries of each row
    first: jax.Ref  # int32 (B,), place of each row's first query
    k: jax.Ref  # bfloat16 (L * B * K, T, H)
    layer: jax.Ref  # int32 (1,)
    order: jax.Ref  # int32 (B * S / TILE,), tiles, those that see most keys first
    q: jax.Ref  # bfloat16 (B, S, N, H)
    v: jax.Ref  # bfloat16 (L * B * K, T, H)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there."""

    k: jax.Ref  # bfloat16 (STAGES, KEYS, H)
    k_free: jax.Ref  # barriers (STAGES,): both warpgroups have left the slot's keys
    k_full: jax.Ref  # barriers (STAGES,): the slot's keys have arrived
    q: jax.Ref  # bfloat16 (2, HALF, H): each warpgroup's queries, later its result on its way out
    q_free: jax.Ref  # barriers (2,): the warpgroup's result has left
    q_full: jax.Ref  # barriers (2,): the warpgroup's queries have arrived
    turn: jax.Ref  # barrier: both warpgroups have come to where one passes the matrix unit on
    v: jax.Ref  # bfloat16 (STAGES, KEYS, H)
    v_free: jax.Ref  # barriers (STAGES,): both warpgroups have left the slot's values
    v_full: jax.Ref  # barriers (STAGES,): the slot's values have arrived


class _Item(NamedTuple):
    """128 queries of one head, the blocks they see or a part of them, and where in its program's work that stands."""

    b: jax.Array
    n: jax.Array
    t: jax.Array  # the tile of queries in its row
    row: jax.Array  # of the cache
    first: jax.Array  # place of the tile's first query
    count: jax.Array  # queries of the tile, which may be none
    split: jax.Array | int  # which part of its keys
    begin: jax.Array | int  # the part's first block; behind the last one that a query sees where it has none
    stop: jax.Array
    number: jax.Array | int = 0  # of this program's items
    done: jax.Array | int = 0  # blocks of the items before

    @property
    def clear(self):
        """Blocks that all queries see."""
        return jnp.clip(lax.div(self.first + 1, jnp.int32(KEYS)) - self.begin, 0, self.steps)

    @property
    def steps(self):
        """Blocks that some query sees; one where there are none, as a warpgroup waits for the other in each."""
        return jnp.maximum(self.stop - self.begin, 1)

    def queries(self, half):
        return pl.ds(self.t * TILE + half * HALF, HALF)


def attend(query, keys, values, layer, first_B, count_B):
    """S a multiple of TILE, T of KEYS: out (B, S, N, H) in the query's dtype."""
    (B, S, N, H), K, tiles = query.shape, keys.shape[2], query.shape[1] // TILE
    keys, values = (x.reshape(-1, *x.shape[3:]) for x in (keys, values))
    items = N * B * tiles
    splits = max(1, min(blocks.MULTIPROCESSORS // items, keys.shape[1] // gpu_parts.LONG))
    items *= splits
    programs = min(items, blocks.MULTIPROCESSORS)
    plan = _Plan(items=items, programs=programs, batch=B, tiles=B * tiles, kv_heads=K, group=N // K, splits=splits)
    out_type = [((B, S, N, H), query.dtype)]
    if splits > 1:
        out_type = [((splits, B, S, N, H), jnp.float32), ((splits, B, N, S), jnp.float32)]
    kernel = plgpu.kernel(
        functools.partial(_program, plan),
        out_type=[jax.ShapeDtypeStruct(*one, manual_axis_type=jax.typeof(query).mat) for one in out_type],
        scratch_types=[_scratch(H)],
        grid=(programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    order = _longest_first(first_B, count_B, tiles)
    alike = (first_B.max(keepdims=True) >= ALIKE * S) | (items >= MANY * K * programs)
    beside = jnp.where(alike, jnp.int32(N // K), jnp.int32(N))
    inputs = _Inputs(beside, count_B, first_B, keys, layer.reshape(1), order, query, values)
    with declared.flops(2 * 2 * B * N * S * keys.shape[1] * H):
        out, *lse = kernel(inputs)
    return vary_alike(query, gpu_parts.together(out, *lse).astype(query.dtype) if lse else out)[1]


def _longest_first(first_B, count_B, tiles: int) -> jax.Array:
    """int32 (B * tiles,): tiles by the keys that they see, the most first; those without a query last."""
    start = jnp.arange(tiles, dtype=jnp.int32)[None] * TILE
    seen = jnp.where(start < count_B[:, None], first_B[:, None] + start, -1).reshape(-1)
    # lax.sort, not argsort, whose indices are typed as equal on all devices inside a checked shard_map.
    return lax.sort((-seen, jnp.arange(seen.size, dtype=jnp.int32) + 0 * seen), num_keys=1)[1]


def _scratch(H: int) -> _Scratch:
    return _Scratch(
        k=blocks.tile(STAGES, KEYS, H),
        k_free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        k_full=plgpu.Barrier(num_barriers=STAGES),
        q=blocks.tile(2, HALF, H),
        q_free=plgpu.Barrier(num_barriers=2),
        q_full=plgpu.Barrier(num_barriers=2),
        turn=plgpu.Barrier(num_arrivals=2),
        v=blocks.tile(STAGES, KEYS, H),
        v_free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        v_full=plgpu.Barrier(num_barriers=STAGES),
    )


def _program(plan: _Plan, inputs: _Inputs, *refs):
    *outs, smem = refs

    def item_of(index) -> _Item:
        """All tiles of the heads that stand beside each other, then those of the next ones; parts of a tile follow."""
        split, index = lax.rem(index, plan.splits), lax.div(index, plan.splits)
        beside = inputs.beside[0] + jnp.int32(0)
        heads, rest = lax.div(index, plan.tiles * beside), lax.rem(index, plan.tiles * beside)
        place, n = inputs.order[lax.div(rest, beside)] + jnp.int32(0), heads * beside + lax.rem(rest, beside)
        each = jnp.int32(plan.tiles // plan.batch)
        b, t = lax.div(place, each), lax.rem(place, each)
        # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
        first, count, layer = (x + jnp.int32(0) for x in (inputs.first[b], inputs.counts[b], inputs.layer[0]))
        count = jnp.clip(count - t * TILE, 0, TILE)
        row = (layer * plan.batch + b) * plan.kv_heads + lax.div(n, jnp.int32(plan.group))
        first = jnp.where(count > 0, first + t * TILE, 0)
        return _Item(b, n, t, row, first, count, split, *gpu_parts.part(plan.splits, split, first, count))

    def each(body):
        _each_item(plan, item_of, lambda number, item, done: body(item._replace(number=number, done=done)))

    def load_item(item: _Item):
        def load_queries(half):
            pl.when(item.number > 0)(lambda: plgpu.barrier_wait(smem.q_free.at[half]))
            source = inputs.q.at[item.b, item.queries(half), item.n]
            plgpu.copy_gmem_to_smem(source, smem.q.at[half], smem.q_full.at[half])

        def fill(step, slot):
            block = step if plan.splits == 1 else jnp.minimum(item.begin + step, inputs.k.shape[1] // KEYS - 1)
            keys = pl.ds(block * KEYS, KEYS)
            plgpu.copy_gmem_to_smem(inputs.k.at[item.row, keys], smem.k.at[slot], smem.k_full.at[slot])
            plgpu.copy_gmem_to_smem(inputs.v.at[item.row, keys], smem.v.at[slot], smem.v_full.at[slot])
            # Only now: the second warpgroup ends its item when the first has begun the next one.
            pl.when(step == 0)(lambda: load_queries(1))

        load_queries(0)

        @pl.loop(0, item.steps)
        def _(step):
            slot = lax.rem(item.done + step, jnp.int32(STAGES))

            @pl.when(item.done + step >= STAGES)
            def _():
                plgpu.barrier_wait(smem.k_free.at[slot])
                plgpu.barrier_wait(smem.v_free.at[slot])

            fill(step, slot)

    def compute(warpgroup):
        # The second warpgroup is half a step behind the first, over the ends of items too.
        pl.when(warpgroup == 1)(lambda: _pass_on(smem))
        each(functools.partial(_compute, outs, smem, warpgroup))
        pl.when(warpgroup == 0)(lambda: _pass_on(smem))

    blocks.compute_and_load(compute, lambda: each(load_item))


def _each_item(plan: _Plan, describe, body):
    """body(number, item, done) for every item of this program, its `number`-th, after `done` steps of those before.

    The programs take the items there and back: the first of one round is the last of the next. What the next item is
    comes from memory while this one is worked at.
    """
    program, whole_rounds = lax.axis_index("program"), plan.items // plan.programs
    backwards = plan.programs - 1 - program
    place_in_last = backwards if whole_rounds % 2 else program
    count = whole_rounds + jnp.where(place_in_last < plan.items % plan.programs, 1, 0)

    def one(number, carry):
        done, item = carry
        after = number + 1
        index = after * plan.programs + jnp.where(lax.rem(after, jnp.int32(2)) == 1, backwards, program)
        following = describe(jnp.minimum(index, plan.items - 1))
        body(number, item, done)
        return done + item.steps, following

    lax.fori_loop(0, count, one, (jnp.int32(0), describe(program)))


def _pass_on(smem: _Scratch):
    plgpu.barrier_arrive(smem.turn)
    plgpu.barrier_wait(smem.turn)


def _compute(outs, smem: _Scratch, warpgroup, item: _Item):
    q = smem.q.at[warpgroup]
    plgpu.barrier_wait(smem.q_full.at[warpgroup])
    H = q.shape[1]
    scale = math.log2(math.e) / math.sqrt(H)

    def step(block, carry, *, masked: bool):
        slot = lax.rem(item.done + block, jnp.int32(STAGES))
        plgpu.barrier_wait(smem.k_full.at[slot])
        (logits,) = blocks.products((q, smem.k.at[slot].transpose((1, 0))), then=lambda: _pass_on(smem))
        if masked:
            query, key = (plgpu.broadcasted_iota(jnp.int32, (HALF, KEYS), i, layout=WGMMA) for i in range(2))
            ahead = (
                item.first + warpgroup * HALF - (item.begin + block) * KEYS
            )  # of the block's first key, the first query here
            logits = jnp.where(key <= query + ahead, logits, jnp.float32(2 * LOW))
        plgpu.barrier_arrive(smem.k_free.at[slot])
        weights, (out, peak, total) = blocks.online_softmax(logits, carry, scale)
        plgpu.barrier_arrive(smem.turn)
        plgpu.barrier_wait(smem.v_full.at[slot])
        plgpu.barrier_wait(smem.turn)
        out = blocks.add_product(out, weights, smem.v.at[slot])
        plgpu.barrier_arrive(smem.v_free.at[slot])
        return out, peak, total

    peak = plgpu.layout_cast(jnp.full((HALF,), LOW, jnp.float32), DOWN)
    carry = blocks.zeros(HALF, H), peak, blocks.zeros(HALF)
    carry = lax.fori_loop(0, item.clear, functools.partial(step, masked=False), carry)
    out, peak, total = lax.fori_loop(item.clear, item.steps, functools.partial(step, masked=True), carry)
    place = item.b, item.queries(warpgroup), item.n
    if len(outs) > 1:  # a part may have nothing for a query
        sees_any = total > 0
        total = jnp.where(sees_any, total, jnp.float32(1))
        lse = jnp.where(sees_any, peak * scale + jnp.log2(total), jnp.float32(jnp.finfo(jnp.float32).min))
        outs[1].at[item.split, item.b, item.n, item.queries(warpgroup)][...] = lse
        place = (item.split, *place)
    row = plgpu.broadcasted_iota(jnp.int32, (HALF, H), 0, layout=WGMMA)
    out = jnp.where(row + warpgroup * HALF < item.count, out * blocks.down(1 / total, H), jnp.float32(0))
    blocks.leave(out, outs[0].at[place], q)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    plgpu.barrier_arrive(smem.q_free.at[warpgroup])
