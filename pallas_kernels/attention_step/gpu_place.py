"""The heads of a token on Hopper: queries and keys rotated, keys and values put into the cache, in one launch.

A rotated head is a row times a table, in which each number meets its own place and its partner's: it is summed as one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.few_rows import EIGHT, ROWS

TABLE = plgpu.Layout.WGMMA
DOWN, ACROSS = TABLE.reduce(1), TABLE.reduce(0)


class _Inputs(NamedTuple):
    active: jax.Ref  # int32 (B,)
    layer: jax.Ref  # int32 (1,)
    position: jax.Ref  # int32 (B,)
    projected: jax.Ref  # bfloat16 (R, (N + 2 K) H)
    turn: jax.Ref  # float32 (2, B, H): the factor of a number, and of its partner


def place(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told):
    """(queries (B, K, EIGHT, H), of which a group's come first, keys, values)."""
    position_B, active_B, layer = told
    _, B, K, _, H = keys_LBKTH.shape
    half, dtype = angle_BA.shape[1], projected_RF.dtype
    heads = projected_RF.shape[1] // H
    cos, sin = jnp.cos(angle_BA), jnp.sin(angle_BA)
    rest = ((0, 0), (0, H - 2 * half))
    own = jnp.pad(jnp.concatenate([cos, cos], axis=1), rest, constant_values=1.0)
    turn = jnp.stack([own, jnp.pad(jnp.concatenate([-sin, sin], axis=1), rest)])
    kernel = plgpu.kernel(
        functools.partial(_program, half),
        out_type=jax.ShapeDtypeStruct((B, K, EIGHT, H), dtype),
        grid=(B, heads),
        grid_names=("row", "head"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    refs = jax.new_ref(keys_LBKTH), jax.new_ref(values_LBKTH)
    query = kernel(_Inputs(active_B.astype(jnp.int32), layer, position_B, projected_RF, turn), *refs)
    return query, *map(jax.freeze, refs)


def _program(half: int, inputs: _Inputs, keys, values, query):
    b, head = lax.axis_index("row"), lax.axis_index("head")
    _, _, K, T, H = keys.shape
    group = inputs.projected.shape[1] // H // K - 2
    number = head - K * group  # among keys, then values
    row = inputs.projected.at[b, pl.ds(head * H, H)]
    position, layer = inputs.position[b], inputs.layer[0]
    is_written = (inputs.active[b] > 0) & (position < T)

    @pl.when(number < K)
    def _():
        turned = _turned(row, inputs.turn.at[0, b], inputs.turn.at[1, b], half).astype(query.dtype)
        pl.when(number < 0)(lambda: _put(query.at[b, head // group, head % group], turned))
        pl.when((number >= 0) & is_written)(lambda: _put(keys.at[layer, b, number, position], turned))

    @pl.when((number >= K) & is_written)
    def _():
        _put(values.at[layer, b, number - K, position], plgpu.load(row, layout=ACROSS, optimized=False))


def _turned(row, own, partner, half: int):
    H = row.shape[0]
    shape = (ROWS, H)
    ids = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=TABLE)
    first, rotated = ids < half, ids < 2 * half
    partner_ids = jnp.where(first, ids + half, jnp.where(rotated, ids - half, jnp.full(shape, H, jnp.int32)))
    own, partner = (
        lax.broadcast_in_dim(plgpu.load(x, layout=ACROSS, optimized=False), shape, [1]) for x in (own, partner)
    )
    total, none = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    for low in range(0, H, ROWS):
        places = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=TABLE) + low
        factor = jnp.where(places == ids, own, jnp.where(places == partner_ids, partner, none))
        x = plgpu.load(row.at[pl.ds(low, ROWS)], layout=DOWN, optimized=False).astype(jnp.float32)
        total += factor * lax.broadcast_in_dim(x, shape, [0])
    return total.sum(axis=0)


def _put(ref, value):
    ref[...] = value
