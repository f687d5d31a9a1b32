"""The heads of a token on Hopper: queries and keys rotated, keys and values put into the cache, in one launch.

A program has one head of one row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.few_rows import EIGHT

ACROSS = plgpu.Layout.WGMMA.reduce(0)
ANGLES = 8  # their number must be a multiple of it, as that of a vector so laid must


class _Inputs(NamedTuple):
    active: jax.Ref  # int32 (B,)
    layer: jax.Ref  # int32 (1,)
    position: jax.Ref  # int32 (B,)
    projected: jax.Ref  # bfloat16 (R, (N + 2 K) H)
    turn: jax.Ref  # float32 (2, B, A): cosines, sines


def place(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told):
    """(queries (B, K, EIGHT, H), of which a group's come first, keys, values)."""
    position_B, active_B, layer = told
    _, B, K, _, H = keys_LBKTH.shape
    kernel = plgpu.kernel(
        functools.partial(_program, angle_BA.shape[1]),
        out_type=jax.ShapeDtypeStruct((B, K, EIGHT, H), projected_RF.dtype),
        grid=(B, projected_RF.shape[1] // H),
        grid_names=("row", "head"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    refs = jax.new_ref(keys_LBKTH), jax.new_ref(values_LBKTH)
    turn = jnp.stack([jnp.cos(angle_BA), jnp.sin(angle_BA)])
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
        turned = _turned(row, _load(inputs.turn.at[0, b]), _load(inputs.turn.at[1, b]), half)
        pl.when(number < 0)(lambda: _put(query.at[b, head // group, head % group], turned))
        pl.when((number >= 0) & is_written)(lambda: _put(keys.at[layer, b, number, position], turned))

    @pl.when((number >= K) & is_written)
    def _():
        _put(values.at[layer, b, number - K, position], [_load(row)])


def _turned(row, cos, sin, half: int):
    """The parts of a head, one after the other: those that turn with each other, and the rest."""
    first, second = (_load(row.at[pl.ds(low, half)]).astype(jnp.float32) for low in (0, half))
    parts = [(x.astype(row.dtype)) for x in (first * cos - second * sin, second * cos + first * sin)]
    rest = row.shape[0] - 2 * half
    return [*parts, _load(row.at[pl.ds(2 * half, rest)])] if rest else parts


def _load(ref):
    return plgpu.load(ref, layout=ACROSS, optimized=False)


def _put(ref, parts) -> None:
    start = 0
    for part in parts:
        ref[pl.ds(start, part.shape[0])] = part
        start += part.shape[0]
