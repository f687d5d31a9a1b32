"""Weights enter products as they are stored, in parts, and are gathered there: a gather of ours, whose gradient is a
sum of ours, by permutes. XLA's own gathers and sums of weights, which follow from shardings, cannot be told how.

For meshes without `tensor`. It takes the place of what the model calls, in a process that does one thing: a model with
such a choice would carry it everywhere for what may turn out to give nothing.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.mesh_ways import permutes
from mm01_jax import sharding
from mm01_jax.inference import scoring
from mm01_jax.model import decoder, experts, layers, lightning, softmax
from mm01_jax.parallel import vocabulary
from mm01_jax.parallel.experts import layer as expert_layers
from pallas_kernels.varying import vary_over

plain_einsum = layers.einsum


def use() -> None:
    for module in (lightning, softmax, experts, decoder, scoring):
        module.cast_and_gather = Parts
    for module in (lightning, softmax):
        module.einsum = einsum
    experts.expert_layer, decoder.embed, scoring.cross_entropy = expert_layer, embed, cross_entropy


class Parts:
    """A weight in the compute dtype as it is stored; made where the model calls `layers.cast_and_gather`."""

    def __init__(self, weight, dtype, rules):
        axes = weight.get_metadata()["axes"][-weight[...].ndim :]
        self.array, self.rules = weight[...].astype(dtype), rules
        mesh = jax.sharding.get_mesh() if jax.sharding.get_abstract_mesh().empty else jax.sharding.get_abstract_mesh()
        self.spec = layers._stored(self.array.shape, axes, mesh, rules).spec
        self.over = tuple(axis for axis in rules.embed if mesh.shape[axis] > 1)
        parts = [(part,) if isinstance(part, str) else part or () for part in self.spec]
        parts = [tuple(axis for axis in part if mesh.shape[axis] > 1) for part in parts]
        self.cut = jax.P(*parts)  # `spec` without axes of one device, which nothing may vary over in what comes out
        self.dim = next((dim for dim, part in enumerate(parts) if set(self.over) & set(part)), None)

    def whole(self, part):
        """Inside a shard_map."""
        if self.over and self.dim is not None:
            part = gather(part, self.over, self.dim)
        return vary_over(part, (*self.rules.batch, *self.rules.seq))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(part, axes, dim):
    """By whatever `lax.all_gather` is in this process (`permutes.use`)."""
    return lax.all_gather(part, axes, axis=dim, tiled=True)


gather.defvjp(
    lambda part, axes, dim: (gather(part, axes, dim), None),
    lambda axes, dim, _, d: (permutes.scatter(d, axes, dim),),
)


def einsum(equation, x, weight, out_dtype=None):
    names = {"b": "batch", "s": "seq"}
    inputs, out = equation.split("->")
    specs = [sharding.spec(weight.rules, *(names.get(c) for c in word)) for word in (inputs.split(",")[0], out)]

    def local(x, part):
        return plain_einsum(equation, x, weight.whole(part), out_dtype)

    return jax.shard_map(local, in_specs=(specs[0], weight.cut), out_specs=specs[1])(x, weight.array)


def expert_layer(x, documents, weights, place=None, *, config, compute, rules, layout="contiguous", tells=False):
    tokens, result = sharding.spec(rules, "batch", "seq", None), sharding.spec(rules, "batch", "seq", "ffn")
    told = {"config": config, "compute": compute, "rules": rules, "layout": layout, "tells": tells}

    def local(x, documents, parts):
        whole = tuple(weight.whole(part) for weight, part in zip(weights, parts, strict=True))
        return expert_layers._local(x, documents, whole, None, **told)

    in_specs = (tokens, sharding.spec(rules, "batch", "seq"), tuple(weight.spec for weight in weights))
    out_specs = result, expert_layers.RouterStats(*[jax.P()] * 6, choice=None)
    run = jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)
    return run(x, documents, tuple(weight.array for weight in weights))


def embed(tokens_BS, table, dtype, *, rules):
    batch = sharding.spec(rules, "batch", "seq")

    def local(tokens, part):
        return table.whole(part)[tokens].astype(dtype)

    run = jax.shard_map(local, in_specs=(batch, table.cut), out_specs=jax.P(*batch, None))
    return run(tokens_BS, table.array)


def cross_entropy(hidden, head, targets, weights, total_weight=1.0, *, chunk, rules):
    tokens = sharding.spec(rules, "batch", "seq")

    def local(hidden, part, *rest):
        return vocabulary._local_cross_entropy(hidden, head.whole(part), *rest, chunk=chunk, rules=rules)

    total_weight = jnp.asarray(total_weight, weights.dtype)
    in_specs = (sharding.spec(rules, "batch", "seq", None), head.spec, tokens, tokens, jax.P())
    return jax.shard_map(local, in_specs=in_specs, out_specs=jax.P())(
        hidden, head.array, targets, weights, total_weight
    )
