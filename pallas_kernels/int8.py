"""A matrix as int8 with a float32 scale for each of its columns (output channels): W ~ values * scale.

    scale = max |W| / 127 over a column      values = round(W / scale)

A column of zeros has scale 0; one with a number that is not finite has a scale that is not, so that who looks at the
scales finds it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOST = 127  # of |values|: symmetric, so that a column and its negative have the same digits
# A column whose numbers are all smaller is one of zeros: MOST / them would be infinite.
LEAST = 1e-36


class Int8(NamedTuple):
    """values: int8, of the matrix's shape. scale: float32, of its shape without the axes that a product sums over."""

    values: jax.Array
    scale: jax.Array


def quantized(weight: jax.Array, summed: tuple[int, ...]) -> Int8:
    """A weight in int8; `summed`: the axes that a product sums over, from the end (negative)."""
    wide = weight.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=summed, keepdims=True)
    # One division a column: XLA divides a whole matrix in another way than NumPy, which has to give the same digits.
    inverse = jnp.where(largest > np.float32(LEAST), np.float32(MOST) / largest, 0)
    return Int8(jnp.round(wide * inverse).astype(jnp.int8), jnp.squeeze(largest * np.float32(1 / MOST), summed))


def dequantized(weight: Int8, summed: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """The numbers that it stands for, rounded to a dtype."""
    return (weight.values.astype(jnp.float32) * jnp.expand_dims(weight.scale, summed)).astype(dtype)


def shape_of(weight) -> tuple[int, ...]:
    """Of a weight of either kind."""
    return weight.values.shape if isinstance(weight, Int8) else weight.shape


def in_layer(weight, layer):
    """One layer's of a stack (L, ...), either kind."""
    return jax.tree.map(lambda array: array[layer], weight)


def check_matrices(name: str, weight, x_RD: jax.Array, shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape of a weight (E, D, F) of either kind.

    Raises:
      ValueError: it is not of that shape, which gate says (None: any that rows of x can be multiplied by), or neither
        in the dtype of x nor Int8.
    """
    found, dtype = shape_of(weight), x_RD.dtype.name
    if isinstance(weight, Int8):
        dtype, scale = "int8", (*found[:1], *found[2:])
        if weight.scale.shape != scale or weight.scale.dtype != jnp.float32:
            got = f"{weight.scale.dtype.name}{list(weight.scale.shape)}"
            raise ValueError(f"{name}.scale must be float32{list(scale)} to go with its values, got {got}")
        name, weight = f"{name}.values", weight.values
    fits = found == shape if shape else len(found) == 3 and found[1] == x_RD.shape[1]
    if not fits or weight.dtype.name != dtype:
        allowed = f"{dtype}{list(shape)}" if shape else f"(E, D={x_RD.shape[1]}, F) in {dtype}"
        beside = "gate" if shape else "x"
        raise ValueError(f"{name} must be {allowed} to go with {beside}, got {weight.dtype.name}{list(found)}")
    return found


def check_stack(name: str, weight, shape: tuple[int, ...], dtype) -> None:
    """Raises ValueError where a stack's matrices are not of a shape (L, E, D, F) in a dtype or as Int8."""
    parts = {name: (weight, shape, jnp.dtype(dtype))}
    if isinstance(weight, Int8):
        parts = {
            f"{name}.values": (weight.values, shape, jnp.dtype("int8")),
            f"{name}.scale": (weight.scale, (*shape[:2], shape[3]), jnp.dtype("float32")),
        }
    for part, (array, size, kind) in parts.items():
        if array.shape != size or array.dtype != kind:
            got = f"{array.dtype.name}{list(array.shape)}"
            raise ValueError(f"{part} must be {kind.name}{list(size)} as x and gate, got {got}")
