"""One token of every row: the decoder's forward with a cache in few launches a layer (`decoder.py` has the formulas).

Weights, states, keys and values stay in their stacks: every operation is told which layer it is for, and nothing is
copied. A layer is seven: projections, the mixer's step, its output product, norm and router, the experts' two halves,
norm. Residuals between them are in the compute dtype, products that meet one are float32 parts which it adds up.

Over `tensor` each device does this with its heads and its share of every expert's width; what meets a residual is
summed over the devices before, twice a layer.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ModelConfig
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.deterministic import ByRowConfig
from mm01_jax.model.layers import Int8Weight, rms_norm, rope_angles
from mm01_jax.model.lightning import Lightning
from mm01_jax.model.mixers import MIXERS, cache_specs, constrain_cache
from mm01_jax.model.softmax import KeysValues
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.parallel.experts.router import count
from pallas_kernels import dispatch
from pallas_kernels.attention_step import attention_step
from pallas_kernels.expert_step import expert_step
from pallas_kernels.few_rows import Placed, filled_up, in_rows
from pallas_kernels.int8 import Int8
from pallas_kernels.lightning_step import RING, empty_rings, lightning_fold, lightning_ring_step, lightning_step
from pallas_kernels.norm_step import Mixed, Norm, Router, norm_step
from pallas_kernels.projection_step import projection_parts, projection_step

MOST_ROWS = 256  # of more, products with all experts are as good
LEAST_RINGED = 32  # rows from which states are most of what a step reads


class Told(NamedTuple):
    """What every layer is told: rows are B, of arrays filled up; places and whether they have a token, (B,) each."""

    positions_B: jax.Array
    active_B: jax.Array


class Weights(NamedTuple):
    """What a step reads of a model, or a device's part of it: stacks of layers, the last norm, float32 slopes a stack
    (M, n, N). axis: over which products are to be summed.
    """

    stacks: Sequence[Any]
    final_norm: nnx.Param
    slopes: Sequence[jax.Array]
    config: ModelConfig
    axis: str | None = None


class Ringed(NamedTuple):
    """States (M, n, B, N, H, H) of lightning layers as of `place` (1,) steps ago, and the tokens since."""

    states: jax.Array
    rings: tuple[jax.Array, jax.Array]
    place: jax.Array


def serves(model, rows: int) -> bool:
    """Whether a token of every row goes this way: up to 256 rows on TPUs or NVIDIA Hopper GPUs, over `tensor` alone,
    bfloat16 weights (those of experts or int8), no expert with a capacity, and not where bits have to be those of
    training's forward.
    """
    sizes, rules = jax.sharding.get_abstract_mesh().shape, model.rules
    by_heads = rules.heads == rules.kv_heads == rules.ffn and "tensor" not in (*rules.expert, *rules.batch, *rules.seq)
    alone = math.prod(sizes.values()) == (sizes.get("tensor", 1) if by_heads else 1)
    plain = model.config.routing == "dropless" and not isinstance(model.config, ByRowConfig)
    here = dispatch.platform() == "tpu" or dispatch.why_not_hopper() is None
    plain &= model.compute.quantize != "int8_attention"
    leaves = jax.tree.leaves(model.stacks, is_leaf=lambda x: isinstance(x, Int8Weight))
    floats = [leaf for leaf in leaves if not isinstance(leaf, Int8Weight)]
    matrices = [model.embed[...], *(weight for weight in floats if weight.ndim > 3)]
    half = model.compute.dtype == "bfloat16" and all(weight.dtype == jnp.bfloat16 for weight in matrices)
    return alone and plain and half and rows <= MOST_ROWS and here


def forward(model, x_BD: jax.Array, told: Told, cache: DecodeCache) -> tuple[jax.Array, DecodeCache, jax.Array]:
    """(hidden (B, D) after the final norm, the cache, the experts chosen (layers, A, B), E where there is none)."""
    weights, config = Weights(list(model.stacks), model.final_norm, model.slopes(), model.config), model.config
    if jax.sharding.get_abstract_mesh().size == 1:
        return _forward(weights, x_BD, told, cache)
    rules, (axis,) = sharding.gathered(model.rules), model.rules.heads
    leaves, tree = jax.tree.flatten((weights.stacks, weights.final_norm))
    params = jax.tree.leaves((weights.stacks, weights.final_norm), is_leaf=lambda x: isinstance(x, nnx.Param))
    specs = [sharding.spec(rules, *param.get_metadata()["axes"]) for param in params]

    def local(leaves, slopes, x_BD, told, cache):
        stacks, final_norm = jax.tree.unflatten(tree, leaves)
        return _forward(Weights(stacks, final_norm, slopes, config, axis), x_BD, told, cache)

    laid = cache_specs(config, model.rules)
    in_specs = (specs, sharding.spec(rules, None, None, "heads"), jax.P(), jax.P(), laid)
    mapped = jax.shard_map(local, in_specs=in_specs, out_specs=(jax.P(), laid, jax.P()), check_vma=False)
    return mapped(leaves, weights.slopes, x_BD, told, cache)


def _forward(model: Weights, x_BD: jax.Array, told: Told, cache: DecodeCache):
    """`forward` on one device, of its part of the weights."""
    config, B = model.config, x_BD.shape[0]
    x = rms_norm(x_BD, model.stacks[0].input_norm[0, 0].astype(x_BD.dtype), config.norm_eps)
    x = jnp.pad(x, ((0, filled_up(B) - B), (0, 0)))
    caches, choices = list(cache.stacks), []
    routers = [jnp.swapaxes(_flat(stack.experts.router, x.dtype), 1, 2) for stack in model.stacks]
    order = _order(model)
    for number, (index, layer) in enumerate(order):
        stack, residual = model.stacks[index], functools.partial(Norm, eps=config.norm_eps)
        mix = _lightning if MIXERS[config.stacks[index][0]] is Lightning else _softmax
        slope_LN = _layers(model.slopes[index])
        parts, mixed, caches[index] = mix(stack.mixer, x, caches[index], (slope_LN, *told), layer)
        parts, mixed = _over_devices(parts, mixed, model.axis, B)
        norm = residual(_flat(stack.post_norm, x.dtype), layer, *stack.mixer.residual(config))
        router = Router(routers[index], layer, told.active_B, config.num_experts_per_token)
        x, choice, weight = norm_step(x, parts, norm, rows=B, mixed=mixed, router=router)
        choices.append(choice[:, :B])
        matrices = tuple(_flat(w, x.dtype) for w in (stack.experts.gate, stack.experts.up, stack.experts.down))
        parts, _ = _over_devices(expert_step(x, choice, weight, matrices, layer, rows=B), None, model.axis, B)
        if number + 1 < len(order):
            after, layer = order[number + 1]
            weight_LD = _flat(model.stacks[after].input_norm, x.dtype)
        else:
            weight_LD, layer = model.final_norm[...].astype(x.dtype)[None], jnp.zeros((1,), jnp.int32)
        norm = residual(weight_LD, layer, config.experts_alpha, config.experts_beta)
        (x,) = norm_step(x, parts, norm, rows=B)
    caches = [x._replace(place=x.place + 1) if isinstance(x, Ringed) else x for x in caches]
    lengths = cache.lengths + told.active_B.astype(jnp.int32)
    return x[:B], DecodeCache(tuple(caches), lengths), jnp.stack(choices)


def _over_devices(parts: jax.Array | Placed, mixed: Mixed | None, axis: str | None, rows: int):
    """Parts summed over the devices, and what their norm is due to of all heads; of one device as they are."""
    if axis is None:
        return parts, mixed
    parts = jax.lax.psum(jnp.sum(in_rows(parts, rows), axis=0, keepdims=True), axis)
    if mixed is not None:
        mixed = mixed._replace(o_RW=jax.lax.all_gather(mixed.o_RW, axis, axis=1, tiled=True))
    return parts, mixed


def rings_pay(model, rows: int, steps: int) -> bool:
    """Whether so many steps of so many rows are computed with rings, and have other last bits than single steps."""
    alone = jax.sharding.get_abstract_mesh().size == 1
    return alone and serves(model, rows) and rows >= LEAST_RINGED and steps <= RING


def begin_rings(model, cache: DecodeCache, steps: int) -> DecodeCache:
    """The cache for some steps after which `end_rings` is called, with rings where they pay."""
    return with_rings(model, cache) if rings_pay(model, cache.lengths.shape[0], steps) else cache


def with_rings(model, cache: DecodeCache) -> DecodeCache:
    """The cache with an empty ring beside each lightning layer's states."""

    def begun(kind, stack):
        if MIXERS[kind] is not Lightning:
            return stack
        return Ringed(stack, empty_rings(_layers(stack), jnp.dtype(model.compute.dtype)), jnp.zeros((1,), jnp.int32))

    pairs = zip(model.config.stacks, cache.stacks, strict=True)
    return DecodeCache(tuple(begun(kind, stack) for (kind, _), stack in pairs), cache.lengths)


def end_rings(model, cache: DecodeCache, lengths_B: jax.Array) -> DecodeCache:
    """The cache without rings; lengths_B are those at `begin_rings`."""

    def ended(stack, slope_MnN):
        if not isinstance(stack, Ringed):
            return stack
        count_B = cache.lengths - lengths_B
        states = lightning_fold(_layers(stack.states), stack.rings, _layers(slope_MnN), count_B)
        return states.reshape(stack.states.shape)

    pairs = zip(cache.stacks, model.slopes(), strict=True)
    return DecodeCache(tuple(ended(*pair) for pair in pairs), cache.lengths)


def constrained(model, cache: DecodeCache) -> DecodeCache:
    """The cache laid as its mixers say; with rings it is on one device."""
    if any(isinstance(stack, Ringed) for stack in cache.stacks):
        return cache
    return constrain_cache(cache, model.config, model.rules)


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
    """A stack's weight (period, layer, ...) -> (layer, ...); one in int8 stays so."""
    if isinstance(weight, Int8Weight):
        return Int8(_layers(weight.values[...]), _layers(weight.scale[...]))
    return _layers(weight[...].astype(dtype))


def _layers(array: jax.Array) -> jax.Array:
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
    weight_LNH, ringed = _flat(mixer.norm, dtype), isinstance(states, Ringed)
    flat = _layers(states.states if ringed else states)
    if ringed:
        told = active_B, states.place, layer
        o, u, rings = lightning_ring_step(projected, flat, states.rings, slope_LN, weight_LNH, told)
        states = states._replace(rings=rings)
    else:
        o, u, flat = lightning_step(projected, flat, slope_LN, weight_LNH, active_B, layer)
        states = flat.reshape(states.shape)
    parts = projection_parts(u, _matrix(mixer.out, dtype, 2), layer)
    return parts, Mixed(o, mixer.config.lightning_norm_eps), states


def _softmax(mixer, x_RD, store: KeysValues, told, layer):
    """(parts of the output product, None, the keys and values with this token's)."""
    (_, positions_B, active_B), config, dtype = told, mixer.config, x_RD.dtype
    matrices = [_matrix(weight, dtype) for weight in (mixer.query, mixer.key, mixer.value)]
    angle_BA = rope_angles(positions_B, config.rotary_dim, config.rope_theta)
    keys, values = map(_layers, store)
    projected = projection_step(x_RD, matrices, layer)
    out, keys, values = attention_step(projected, angle_BA, keys, values, (positions_B, active_B, layer))
    parts = projection_parts(out, _matrix(mixer.out, dtype, 2), layer)
    return parts, None, KeysValues(keys.reshape(store.keys.shape), values.reshape(store.values.shape))
