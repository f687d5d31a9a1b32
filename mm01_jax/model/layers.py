"""What every layer is made of: a weight, a matmul, RMSNorm, partial RoPE (docs/model.md A).

A weight is stated once, by one `param` line: shape, logical axes, initializer. Its sharding follows from the axes
through the rules, at birth (`shardings`) and in use (`cast_and_gather`).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, Rules
from mm01_jax.parallel.stored import Stored, product
from pallas_kernels.int8 import Int8, quantized
from pallas_kernels.precision import matmul_precision

_USUAL = ComputeConfig()
Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


class ShapesAlone(nnx.Rngs):
    """Given to a model whose numbers nobody asks for (`jax.eval_shape`): it draws none, which takes long to trace."""


def _drawn(rngs: nnx.Rngs, init: Initializer, shape: tuple[int, ...], dtype: str) -> jax.Array:
    if isinstance(rngs, ShapesAlone):
        return jnp.zeros(shape, dtype)
    return init(rngs.params(), shape, jnp.dtype(dtype))


def param(
    rngs: nnx.Rngs,
    shape: Sequence[int],
    axes: Sequence[str | None],
    init: Initializer,
    *,
    stack: Sequence[int] = (),
    compute: ComputeConfig = _USUAL,
) -> nnx.Param:
    """A weight of `stack + shape`; `stack` (period, layer) goes in front and is scanned over.

    Args:
      shape: dims of one layer's weight, without the stack.
      axes: logical axis of each dim of `shape` (None: never sharded).
      init: (key, full shape, dtype) -> array.
      compute: how it is stored, and its gradient summed.
    """
    value = _drawn(rngs, init, (*stack, *shape), compute.param_dtype)
    return nnx.Param(value, axes=("period", "layer")[: len(stack)] + tuple(axes), reduce_dtype=compute.reduce_dtype)


class Int8Weight(nnx.Module):
    """A weight kept as int8 (`pallas_kernels/int8.py`), drawn as `param` draws it.

    axes, summed: logical axes of a layer's weight, and which of its dims a product sums over, from the end; the latter
    stands in the metadata of `values`, so that who makes one of a float leaf need not know the layer.
    """

    def __init__(self, rngs: nnx.Rngs, shape, axes, init: Initializer, *, summed: tuple[int, ...], stack=()):
        drawn = quantized(_drawn(rngs, init, (*stack, *shape), "float32"), summed)
        axes = ("period", "layer")[: len(stack)] + tuple(axes)
        kept = [axis for i, axis in enumerate(axes) if i - len(axes) not in summed]
        self.values = nnx.Param(drawn.values, axes=axes, summed=summed)
        self.scale = nnx.Param(drawn.scale, axes=tuple(kept))


def matrix(
    rngs: nnx.Rngs,
    shape: Sequence[int],
    axes: Sequence[str | None],
    init: Initializer,
    *,
    summed: tuple[int, ...],
    quantize: bool,
    stack: Sequence[int] = (),
    compute: ComputeConfig = _USUAL,
) -> "nnx.Param | Int8Weight":
    """`param`, or the same in int8."""
    if quantize:
        return Int8Weight(rngs, shape, axes, init, summed=summed, stack=stack)
    return param(rngs, shape, axes, init, stack=stack, compute=compute)


def xavier(fan_in: int, fan_out: int, gain: float | Sequence[float] = 1.0, gain_axis: int = -1) -> Initializer:
    """Xavier normal, std = gain * sqrt(2 / (fan_in + fan_out)); paper 4.2 with DeepNorm's gain on some matrices.

    A sequence of gains applies along `gain_axis`: the packed q|k|v has DeepNorm's gain on v alone.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        std = math.sqrt(2.0 / (fan_in + fan_out))
        scale = jnp.asarray(gain, dtype)
        if scale.ndim:
            dims = [1] * len(shape)
            dims[gain_axis] = scale.size
            scale = scale.reshape(dims)
        else:
            scale = scale.reshape((1,) * len(shape))
        return jax.random.normal(key, shape, dtype) * (scale * jnp.asarray(std, dtype))

    return init


def ones(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Norm weights start at one."""
    del key
    return jnp.ones(shape, dtype)


def summed_in(weight: nnx.Param, dtype: jnp.dtype) -> np.dtype:
    """The type in which devices sum a weight's gradient where it is used in `dtype` (`compute.reduce_dtype`).

    A weight in use has that type, and values of `dtype`. What uses it casts it last, where its gradient is still of one
    device's tokens: in front of a product (`einsum`), over the tokens (`spread`), inside a `shard_map`.
    """
    reduce_dtype = weight.get_metadata().get("reduce_dtype", "auto")  # int8 has no gradient, and no such type
    return np.dtype(dtype) if reduce_dtype == "auto" else np.promote_types(dtype, reduce_dtype)


def in_use(weight: nnx.Param, dtype: jnp.dtype) -> jax.Array:
    """A weight that no axis only stores, ready for use."""
    return weight[...].astype(summed_in(weight, dtype))


def spread(weight: jax.Array, x: jax.Array) -> jax.Array:
    """A weight over the leading dims of x, in its dtype."""
    return jnp.broadcast_to(weight.reshape((1,) * (x.ndim - weight.ndim) + weight.shape), x.shape).astype(x.dtype)


def cast_and_gather(weight: nnx.Param | Int8Weight, dtype: jnp.dtype, rules: Rules) -> jax.Array | Int8:
    """A weight ready for use: cast to the compute dtype, then gathered over the axes that only store it.

    The cast comes first, so a bfloat16 model gathers half the bytes of its float32 masters. One in int8 stays so.
    """
    if isinstance(weight, Int8Weight):
        return Int8(*(cast_and_gather(part, part.dtype, rules) for part in (weight.values, weight.scale)))
    axes = weight.get_metadata()["axes"][-weight[...].ndim :]
    place, wide = sharding.spec(sharding.gathered(rules), *axes), summed_in(weight, dtype)
    if wide != dtype:
        return _gathered_for_wide(weight[...], dtype, wide, place)
    return jax.lax.with_sharding_constraint(weight[...].astype(dtype), place)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered_for_wide(weight: jax.Array, dtype: jnp.dtype, wide: jnp.dtype, place: P) -> jax.Array:
    """Cast and gathered in `dtype`; `wide` for those who use it, whose gradient it takes as it is."""
    return jax.lax.with_sharding_constraint(weight.astype(dtype), place).astype(wide)


_gathered_for_wide.defvjp(
    lambda weight, *told: (_gathered_for_wide(weight, *told), jnp.zeros((), weight.dtype)),
    lambda dtype, wide, place, like, d: (jax.lax.with_sharding_constraint(d, place).astype(like.dtype),),
)


def stored_apart(rules: Rules) -> bool:
    """Whether the mesh in force cuts weights over axes that only store them: each is then gathered before its use."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in rules.embed) > 1


def shardings[Tree](tree: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """A model, gradients or a whole training state with each leaf replaced by its NamedSharding.

    Weights, and moments made from them, carry their axes; anything else (counters) is on every device. Leaves may be
    abstract (jax.eval_shape).

    Raises:
      ValueError: names the weight whose axes are unknown, would use a mesh axis twice, or do not divide its dims.
    """

    def one(path, leaf):
        if not isinstance(leaf, nnx.Variable):
            return sharding.named(mesh, rules)
        try:
            placed = _stored(leaf.shape, leaf.get_metadata()["axes"], mesh, rules)
            placed.shard_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(f"weight {jax.tree_util.keystr(path, simple=True, separator='/')}: {error}") from None
        return leaf.replace(placed)

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _stored(shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh, rules: Rules) -> NamedSharding:
    """How a weight lies: what only stores it cuts the first dim of a layer's instead of its width, where that divides.

    Parts of a first dim are gathered, and gradients summed into them, as they lie; parts of a later one are transposed
    before and after, which by its kernels' times is much of what two GPUs add to a step (benchmarks/mesh.md).
    """
    return NamedSharding(mesh, lies(shape, axes, mesh.shape, rules))


def lies(shape: Sequence[int], axes: Sequence[str | None], sizes: Mapping[str, int], rules: Rules) -> P:
    """Where a stored weight is cut, on a mesh of these sizes."""
    placed = sharding.spec(rules, *axes)
    first = sum(axis in ("period", "layer") for axis in axes)
    if axes[first] is None or "embed" not in axes[first + 1 :] or math.prod(sizes[a] for a in rules.embed) == 1:
        return placed
    together = (*getattr(rules, axes[first]), *rules.embed)
    if shape[first] % math.prod(sizes[axis] for axis in together):
        return placed
    parts = list(sharding.spec(sharding.gathered(rules), *axes))
    parts[first] = together
    return P(*parts)


def einsum(
    equation: str, x: jax.Array, weight: jax.Array | Int8 | Stored, out_dtype: jnp.dtype | None = None
) -> jax.Array:
    """Contraction in the operands' dtype with float32 accumulation, returned in x's dtype (or `out_dtype`).

    Of an int8 weight the result, whose last dims are those of the scale, is scaled before it is rounded.
    """
    if isinstance(weight, Stored):
        return product(lambda x, whole: einsum(equation, x, whole, out_dtype), equation, x, weight)
    if isinstance(weight, Int8):
        wide = np.promote_types(x.dtype, np.float32)
        out = einsum(equation, x, weight.values.astype(x.dtype), wide)
        scale = weight.scale.astype(wide).reshape((1,) * (out.ndim - weight.scale.ndim) + weight.scale.shape)
        return (out * scale).astype(out_dtype or x.dtype)
    if weight.dtype != x.dtype:
        return _einsum_of_wide(equation, x, weight, out_dtype)
    # The result type is asked for, not cast to: matrix units accumulate in float32 either way, and a cast afterwards
    # would make the backward's matmuls take float32 operands.
    precision = matmul_precision(x.dtype)
    return jnp.einsum(equation, x, weight, precision=precision, preferred_element_type=out_dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _einsum_of_wide(equation: str, x: jax.Array, weight: jax.Array, out_dtype: jnp.dtype | None) -> jax.Array:
    """`einsum` of a weight cast to x's dtype, whose gradient leaves its product in the weight's own.

    The partitioner sums over devices what leaves a product, so a cast behind it would be too late.
    """
    return einsum(equation, x, weight.astype(x.dtype), out_dtype)


def _einsum_of_wide_backward(equation: str, out_dtype, residuals, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    del out_dtype
    x, weight, like = residuals
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    d_x = einsum(f"{out},{right}->{left}", d_out, weight.astype(d_out.dtype), x.dtype)
    return d_x, einsum(f"{left},{out}->{right}", x.astype(d_out.dtype), d_out, like.dtype)


def _einsum_of_wide_forward(equation: str, x: jax.Array, weight: jax.Array, out_dtype):
    narrow = weight.astype(x.dtype)
    return einsum(equation, x, narrow, out_dtype), (x, narrow, jnp.zeros((), weight.dtype))


_einsum_of_wide.defvjp(_einsum_of_wide_forward, _einsum_of_wide_backward)


@jax.named_scope("norms")
def rms_norm(x: jax.Array, weight: jax.Array, eps: float, num_axes: int = 1) -> jax.Array:
    """weight * cast(x / sqrt(mean(x^2) + eps)) over the last `num_axes` dims; statistics in float32 (model.md A.2)."""
    axes = tuple(range(-num_axes, 0))
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + eps)
    return spread(weight, x) * (wide * inverse).astype(x.dtype)


def rope(x_BSNH: jax.Array, positions_BS: jax.Array, rotary_dim: int, theta: float) -> jax.Array:
    """Rotates the first `rotary_dim` dims of each head, i with i + rotary_dim/2, in float32 (model.md A.5)."""
    half = rotary_dim // 2
    wide = np.promote_types(x_BSNH.dtype, np.float32)
    angle = rope_angles(positions_BS, rotary_dim, theta, wide)[:, :, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first = x_BSNH[..., :half].astype(wide)
    second = x_BSNH[..., half:rotary_dim].astype(wide)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x_BSNH.dtype), x_BSNH[..., rotary_dim:]], axis=-1)


def rope_angles(positions: jax.Array, rotary_dim: int, theta: float, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """The angles (..., rotary_dim / 2) by which the pairs of a head at these positions are turned."""
    exponent = -jnp.arange(rotary_dim // 2, dtype=dtype) * (2.0 / rotary_dim)
    frequency = jnp.asarray(theta, dtype) ** exponent
    lead = (1,) * positions.ndim
    return positions[..., None].astype(dtype) * frequency.reshape(*lead, -1)
