"""A small training state shaped like the real one: stacks, experts, three dtypes, AdamW's moments.

The checkpoint tests need its paths, stack axes and shardings, and nothing of its mathematics.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

M, N_LAYERS, E, D, F, V = 2, 3, 4, 8, 16, 32
STACKED = ("period", "layer", "expert")
AXES = ("data", "expert", "tensor", "sequence")
# path -> shape, logical axes: the mesh axis each dim may lie on.
LEAVES = {
    "embed": ((V, D), ("tensor", "data")),
    "stacks/0/mixer/qkv": ((M, N_LAYERS, D, F), (None, None, "data", "tensor")),
    "stacks/0/mixer/value": ((M, N_LAYERS, D, F), (None, None, "sequence", "tensor")),
    "stacks/0/norm": ((M, N_LAYERS, D), (None, None, None)),
    "stacks/0/experts/gate": ((M, N_LAYERS, E, D, F), (None, None, "expert", ("data", "sequence"), "tensor")),
    "stacks/0/experts/down": ((M, N_LAYERS, E, F, D), (None, None, "expert", "tensor", "data")),
    "head": ((D, V), (None, ("tensor", "expert"))),
}
META = {"config": {"name": "standin", "model": {"embed_dim": D}}, "data": {"position": 17, "fingerprint": "ab"}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """Fields as in the training state."""

    step: Any
    model: Any
    opt_state: Any


class Node(nnx.Module):
    """A module with the children it is given."""

    def __init__(self, children: dict):
        for name, child in children.items():
            setattr(self, name, child)


def make_mesh(*sizes: int) -> jax.sharding.Mesh:
    """A mesh of the four axes on the first devices."""
    count = int(np.prod(sizes))
    return jax.make_mesh(sizes, AXES, devices=jax.devices()[:count])


def make_model(mesh, seed: int, dtype: str = "float32", shapes: dict = LEAVES) -> nnx.Module:
    """Random weights on `mesh`; the experts are bfloat16 whatever `dtype` is."""
    random = np.random.default_rng(seed)

    def leaf(path):
        shape, axes = shapes[path]
        kind = "bfloat16" if "experts" in path else dtype
        value = random.standard_normal(shape).astype(jnp.dtype(kind))
        stack = STACKED[: 3 if "experts" in path else 2] if path.startswith("stacks/") else ()
        logical = stack + (None,) * (len(shape) - len(stack))
        return nnx.Param(_place(value, NamedSharding(mesh, PartitionSpec(*axes))), axes=logical)

    def module(prefix):
        names = dict.fromkeys(p[len(prefix) :].split("/")[0] for p in shapes if p.startswith(prefix))
        return Node({n: leaf(prefix + n) if prefix + n in shapes else child(prefix + n) for n in names})

    def child(path):
        return nnx.List([module(path + "/0/")]) if path == "stacks" else module(path + "/")

    return module("")


def make_state(mesh, seed: int = 0, dtype: str = "float32", shapes: dict = LEAVES) -> State:
    """A state whose moments are random too, so that no leaf equals another."""
    model = make_model(mesh, seed, dtype, shapes)
    opt_state = optax.adamw(1e-3).init(model)
    random = np.random.default_rng(seed + 1)

    def noise(x):
        if x.ndim == 0:
            return _place(np.array(seed, np.int32), NamedSharding(mesh, PartitionSpec()))
        return _place(random.standard_normal(x.shape).astype(x.dtype), x.sharding)

    step = _place(np.array(seed, np.int32), NamedSharding(mesh, PartitionSpec()))
    return State(step=step, model=model, opt_state=jax.tree.map(noise, opt_state))


def _place(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def abstract(state) -> Any:
    """The state as shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def bits(tree) -> list[bytes]:
    """The bytes of every leaf, for bitwise comparison."""
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
