"""Weights that enter a `shard_map` as they are stored, in parts, and are gathered there (`collectives.py`).

XLA's own gathers and sums of weights follow from shardings, and nobody can tell it how to make them. Here a weight's
gather is a collective of ours, and of its gradient, which leaves the product of one device's tokens, a scattered sum.
"""

import dataclasses
from collections.abc import Callable

import jax

from mm01_jax import sharding
from mm01_jax.config import Rules
from mm01_jax.parallel import collectives
from pallas_kernels.varying import vary_over


@dataclasses.dataclass(frozen=True)
class Stored:
    """A weight in the compute dtype as it is stored: cut over the axes of `embed`, and experts over `expert`.

    spec: how it lies; cut: the same without axes of one device, over which nothing then varies that is made of it.
    over: the axes of `embed`, which cut `dim` behind all others.
    """

    array: jax.Array
    spec: jax.P
    cut: jax.P
    over: tuple[str, ...]
    dim: int
    rules: Rules

    def whole(self, part: jax.Array) -> jax.Array:
        """Inside a `shard_map`, of this device's part."""
        return vary_over(collectives.gather(part, self.over, self.dim), (*self.rules.batch, *self.rules.seq))


def entering(weight, spec: jax.P) -> tuple[jax.Array, jax.P, Callable[[jax.Array], jax.Array]]:
    """(what enters a `shard_map`, its spec, what makes the weight of it inside) of a weight that may be `Stored`."""
    if isinstance(weight, Stored):
        return weight.array, weight.spec, weight.whole
    return weight, spec, lambda x: x


def product(local: Callable[..., jax.Array], equation: str, x: jax.Array, weight: Stored) -> jax.Array:
    """`local(x, weight)`, the einsum of an equation in which b and s are batch and sequence of the activations."""
    names = {"b": "batch", "s": "seq"}
    inputs, out = equation.split("->")
    specs = [sharding.spec(weight.rules, *map(names.get, word)) for word in (inputs.split(",")[0], out)]

    def run(x, part):
        return local(x, weight.whole(part))

    return jax.shard_map(run, in_specs=(specs[0], weight.cut), out_specs=specs[1])(x, weight.array)
