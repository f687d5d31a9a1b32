"""One token of every row: the decoder's forward with a cache in few launches a layer (`decoder.py` has the formulas).

Weights, states, keys and values stay in their stacks: every operation is told which layer it is for, and nothing is
copied. A layer is seven: projections, the mixer's step, its output product, norm and router, the experts' two halves,
norm. Residuals between them are in the compute dtype, products that meet one are float32 parts which it adds up.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.deterministic import ByRowConfig
from mm01_jax.model.layers import rms_norm, rope_angles
from mm01_jax.model.lightning import Lightning
from mm01_jax.model.mixers import MIXERS
from mm01_jax.model.softmax import KeysValues
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.parallel.experts.router import count
from pallas_kernels import dispatch
from pallas_kernels.attention_step import attention_step
from pallas_kernels.expert_step import expert_step
from pallas_kernels.few_rows import filled_up
from pallas_kernels.lightning_step import lightning_step
from pallas_kernels.norm_step import Mixed, Norm, Router, norm_step
from pallas_kernels.projection_step import projection_parts, projection_step

MOST_ROWS = 256  # of more, products with all experts are as good


class Told(NamedTuple):
    """What every layer is told: rows are B, of arrays filled up; places and whether they have a token, (B,) each."""

    positions_B: jax.Array
    active_B: jax.Array


def serves(model, rows: int) -> bool:
    """Whether a token of every row goes this way: up to 256 rows on one NVIDIA Hopper GPU, bfloat16 weights, no expert
    with a capacity, and not where bits have to be those of training's forward."""
    alone = math.prod(jax.sharding.get_abstract_mesh().shape.values()) == 1
    plain = model.config.routing == "dropless" and not isinstance(model.config, ByRowConfig)
    half = model.compute.dtype == "bfloat16" and model.embed[...].dtype == jnp.bfloat16
    return alone and plain and half and rows <= MOST_ROWS and dispatch.why_not_hopper() is None


def forward(model, x_BD: jax.Array, told: Told, cache: DecodeCache) -> tuple[jax.Array, DecodeCache, jax.Array]:
    """(hidden (B, D) after the final norm, the cache, the experts chosen (layers, A, B), E where there is none)."""
    config, B = model.config, x_BD.shape[0]
    x = rms_norm(x_BD, model.stacks[0].input_norm[0, 0].astype(x_BD.dtype), config.norm_eps)
    x = jnp.pad(x, ((0, filled_up(B) - B), (0, 0)))
    caches, choices = list(cache.stacks), []
    routers = [jnp.swapaxes(_flat(stack.experts.router, x.dtype), 1, 2) for stack in model.stacks]
    order = _order(model)
    for number, (index, layer) in enumerate(order):
        stack, residual = model.stacks[index], functools.partial(Norm, eps=config.norm_eps)
        mix = _lightning if MIXERS[config.stacks[index][0]] is Lightning else _softmax
        slope_LN = model.slopes()[index].reshape(-1, config.num_heads)
        parts, mixed, caches[index] = mix(stack.mixer, x, caches[index], (slope_LN, *told), layer)
        norm = residual(_flat(stack.post_norm, x.dtype), layer, *stack.mixer.residual(config))
        router = Router(routers[index], layer, told.active_B, config.num_experts_per_token)
        x, choice, weight = norm_step(x, parts, norm, rows=B, mixed=mixed, router=router)
        choices.append(choice[:, :B])
        matrices = tuple(_flat(w, x.dtype) for w in (stack.experts.gate, stack.experts.up, stack.experts.down))
        parts = expert_step(x, choice, weight, matrices, layer, rows=B)
        if number + 1 < len(order):
            after, layer = order[number + 1]
            weight_LD = _flat(model.stacks[after].input_norm, x.dtype)
        else:
            weight_LD, layer = model.final_norm[...].astype(x.dtype)[None], jnp.zeros((1,), jnp.int32)
        norm = residual(weight_LD, layer, config.experts_alpha, config.experts_beta)
        (x,) = norm_step(x, parts, norm, rows=B)
    lengths = cache.lengths + told.active_B.astype(jnp.int32)
    return x[:B], DecodeCache(tuple(caches), lengths), jnp.stack(choices)


def stats(choice_LAB: jax.Array, active_B: jax.Array, num_experts: int) -> RouterStats:
    """What a step knows of its routing, a layer in front; probabilities are training's, and 0 here."""
    L = choice_LAB.shape[0]
    none = jnp.zeros((L,), jnp.float32)
    return RouterStats(
        assigned=count(choice_LAB.reshape(L, -1), num_experts).astype(jnp.float32),
        probability=jnp.zeros((L, num_experts), jnp.float32),
        z_square=none,
        tokens=none + jnp.sum(active_B, dtype=jnp.float32),
        dropped=none,
        overflow=none,
    )


def _order(model) -> list[tuple[int, jax.Array]]:
    """Of every layer in turn: its stack, and its place there as int32 (1,)."""
    counts = [count for _, count in model.config.stacks]
    return [
        (index, jnp.full((1,), period * count + layer, jnp.int32))
        for period in range(model.config.num_periods)
        for index, count in enumerate(counts)
        for layer in range(count)
    ]


def _flat(weight, dtype: jnp.dtype) -> jax.Array:
    """A stack's weight (period, layer, ...) -> (layer, ...)."""
    array = weight[...].astype(dtype)
    return array.reshape(-1, *array.shape[2:])


def _matrix(weight, dtype: jnp.dtype, num_inputs: int = 1) -> jax.Array:
    """A stack's weight as matrices (layer, rows, columns), the first `num_inputs` dims of a layer's being rows."""
    flat = _flat(weight, dtype)
    inputs = math.prod(flat.shape[1 : 1 + num_inputs])
    return flat.reshape(flat.shape[0], inputs, -1)


def _lightning(mixer, x_RD, states, told, layer):
    """(parts of the output product, what its norm is still due to, the states)."""
    slope_LN, _, active_B = told
    dtype = x_RD.dtype
    projected = projection_step(x_RD, [_matrix(mixer.qkv, dtype), _matrix(mixer.output_gate, dtype)], layer)
    flat = states.reshape(-1, *states.shape[2:])
    o, u, flat = lightning_step(projected, flat, slope_LN, _flat(mixer.norm, dtype), active_B, layer)
    parts = projection_parts(u, _matrix(mixer.out, dtype, 2), layer)
    return parts, Mixed(o, mixer.config.lightning_norm_eps), flat.reshape(states.shape)


def _softmax(mixer, x_RD, store: KeysValues, told, layer):
    """(parts of the output product, None, the keys and values with this token's)."""
    (_, positions_B, active_B), config, dtype = told, mixer.config, x_RD.dtype
    matrices = [_matrix(weight, dtype) for weight in (mixer.query, mixer.key, mixer.value)]
    angle_BA = rope_angles(positions_B, config.rotary_dim, config.rope_theta)
    keys, values = (x.reshape(-1, *x.shape[2:]) for x in store)
    projected = projection_step(x_RD, matrices, layer)
    out, keys, values = attention_step(projected, angle_BA, keys, values, (positions_B, active_B, layer))
    parts = projection_parts(out, _matrix(mixer.out, dtype, 2), layer)
    return parts, None, KeysValues(keys.reshape(store.keys.shape), values.reshape(store.values.shape))
