"""A softmax layer's decode step on a TPU: keys and values put in place, then attention over filled blocks alone.

The first kernel reads and writes the few places around a row's new one. The second goes through the blocks of a row's
keys and values; of those behind the last that is filled it names the last again, so that none is read.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared, dispatch
from pallas_kernels.attention_step.xla import rotated
from pallas_kernels.few_rows import filled_up
from pallas_kernels.precision import matmul_precision

PLACES = 16  # that are written together: the rows of a bfloat16 tile
BLOCKS = (512, 256, 128)  # keys of a step, of these the first that divides their number
HEAD_DIMS = (64, 128, 256)
LEAST = -1e30


def unsupported(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del projected_RF, angle_BA, values_LBKTH, told
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    T, H = keys_LBKTH.shape[3:]
    if H not in HEAD_DIMS or T % BLOCKS[-1]:
        return f"it takes head_dim of {HEAD_DIMS}, T a multiple of {BLOCKS[-1]}; got {H}, {T}"
    return None


def forward(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told):
    """Contract in the package's docstring."""
    position_B, active_B, layer = told
    _, B, K, T, H = keys_LBKTH.shape
    heads = projected_RF[:B].reshape(B, -1, H)
    turned = rotated(heads[:, :-K], angle_BA)
    position_B = jnp.clip(position_B, 0, T - 1)
    scalars = layer, position_B, active_B.astype(jnp.int32)
    keys_LBKTH, values_LBKTH = _place(scalars, (turned[:, -K:], heads[:, -K:]), (keys_LBKTH, values_LBKTH))
    out = _attend(scalars, turned[:, :-K].reshape(B, K, -1, H), keys_LBKTH, values_LBKTH)
    return jnp.pad(out.reshape(B, -1), ((0, filled_up(B) - B), (0, 0))), keys_LBKTH, values_LBKTH


def _place(scalars, new_BKH, stores):
    """Keys and values with a token's in their places."""
    _, B, K, _, H = stores[0].shape
    token = pl.BlockSpec((None, K, H), lambda b, *_: (b, 0, 0))
    around = pl.BlockSpec(
        (None, None, K, PLACES, H), lambda b, layer, position, active: (layer[0], b, 0, position[b] // PLACES, 0)
    )
    return pl.pallas_call(
        _place_kernel,
        out_shape=[jax.ShapeDtypeStruct(store.shape, store.dtype) for store in stores],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B,),
            in_specs=[token, token, around, around],
            out_specs=[around, around],
        ),
        input_output_aliases={5: 0, 6: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=declared.cost(0, *[jax.ShapeDtypeStruct((B, K, PLACES, H), stores[0].dtype)] * 4),
        name="attention_step_place",
    )(*scalars, *new_BKH, *stores)


def _place_kernel(_, position_ref, active_ref, key_ref, value_ref, keys_ref, values_ref, *new_refs):
    row, K = pl.program_id(0), key_ref.shape[0]
    line = jax.lax.broadcasted_iota(jnp.int32, (PLACES, 1), 0)
    is_new = (line == position_ref[row] % PLACES) & (active_ref[row] != 0)
    for token, old, new in ((key_ref, keys_ref, new_refs[0]), (value_ref, values_ref, new_refs[1])):
        tokens = token[...].astype(jnp.float32)
        for k in range(K):
            new[k] = jnp.where(is_new, tokens[k : k + 1], old[k].astype(jnp.float32)).astype(new.dtype)


def _attend(scalars, query_BKGH, keys_LBKTH, values_LBKTH):
    """(B, K, G, H) in the queries' dtype."""
    (B, K, G, H), T = query_BKGH.shape, keys_LBKTH.shape[3]
    size = next(size for size in BLOCKS if T % size == 0)

    def filled(b, step, layer, position, active):
        return layer[0], b, 0, jnp.minimum(step, position[b] // size), 0

    query = pl.BlockSpec((None, K, G, H), lambda b, step, *_: (b, 0, 0, 0))
    some = pl.BlockSpec((None, None, K, size, H), filled)
    return pl.pallas_call(
        functools.partial(_kernel, size),
        out_shape=jax.ShapeDtypeStruct(query_BKGH.shape, query_BKGH.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, T // size),
            in_specs=[query, some, some],
            out_specs=query,
            scratch_shapes=[pltpu.VMEM((K, G, width), jnp.float32) for width in (H, 1, 1)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=declared.cost(4 * B * K * G * T * H, query_BKGH, keys_LBKTH[0], values_LBKTH[0]),
        name="attention_step",
    )(*scalars, query_BKGH, keys_LBKTH, values_LBKTH)


def _kernel(size: int, _layer, position_ref, _active, query_ref, keys_ref, values_ref, out_ref, *scratch):
    total_ref, greatest_ref, weight_ref = scratch
    step, position = pl.program_id(1), position_ref[pl.program_id(0)]
    K, _, H = query_ref.shape
    told = {"precision": matmul_precision(query_ref.dtype), "preferred_element_type": jnp.float32}

    @pl.when(step == 0)
    def _():
        total_ref[...], weight_ref[...] = jnp.zeros_like(total_ref), jnp.zeros_like(weight_ref)
        greatest_ref[...] = jnp.full_like(greatest_ref, LEAST)

    @pl.when(step <= position // size)
    def _():
        for k in range(K):
            scores = jax.lax.dot_general(query_ref[k], keys_ref[k], (((1,), (1,)), ((), ())), **told) * H**-0.5
            ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) + step * size
            scores = jnp.where(ids <= position, scores, LEAST)
            new = jnp.maximum(greatest_ref[k], jnp.max(scores, axis=1, keepdims=True))
            over, shrink = jnp.exp(scores - new), jnp.exp(greatest_ref[k] - new)
            mixed = jnp.dot(over.astype(values_ref.dtype), values_ref[k], **told)
            total_ref[k] = total_ref[k] * shrink + mixed
            weight_ref[k] = weight_ref[k] * shrink + jnp.sum(over, axis=1, keepdims=True)
            greatest_ref[k] = new

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        out_ref[...] = (total_ref[...] / weight_ref[...]).astype(out_ref.dtype)
