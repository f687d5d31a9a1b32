"""What decoding remembers: one pytree, allocated once, each mixer's part in a shape of its own.

The cache travels through the layer scan as part of its carry and is updated in place at (period, layer): nothing of
its size is ever copied when the caller donates it. A row's next token goes to slot `lengths[row]`; slot = position.
"""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackCache:
    """The part of the cache that one stack of layers has, and which of its layers is in hand.

    arrays: the mixer's pytree (`empty_cache`), every leaf (M, n, B, ...). period, layer: int32 scalars.
    """

    arrays: Any
    period: jax.Array
    layer: jax.Array

    def take(self) -> Any:
        """What the layer in hand has: leaves (B, ...)."""
        return jax.tree.map(lambda array: array[self.period, self.layer], self.arrays)

    def put(self, arrays: Any) -> "StackCache":
        """This cache with other arrays (B, ...) for the layer in hand."""
        at = (self.period, self.layer)
        return self.replace(jax.tree.map(lambda array, new: array.at[at].set(new), self.arrays, arrays))

    def replace(self, arrays: Any) -> "StackCache":
        """The same layer in hand of other arrays (M, n, B, ...)."""
        return dataclasses.replace(self, arrays=arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeCache:
    """The whole cache (made by `mixers.empty_cache`).

    stacks: one entry per stack of the period, its mixer's pytree. lengths: (B,) int32, tokens seen by each row.
    """

    stacks: tuple
    lengths: jax.Array
