"""Which leaves of a model are matrices that may be int8, and a model of floats made one of int8 while it is loaded.

Which those are says the model (`layers.Int8Weight`): the leaf `experts/gate` becomes `experts/gate/values` and
`experts/gate/scale`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mm01_jax.checkpoint import CheckpointError, leaf_paths
from mm01_jax.config import Config
from mm01_jax.model.abstract import abstract_model, abstract_weights
from pallas_kernels.int8 import Int8, quantized

PARTS = Int8._fields


def with_int8(config: Config, form: str) -> Config:
    """The config of the same model in int8 (`compute.quantize`)."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, quantize=form))


def matrices(config: Config) -> dict[str, tuple[int, ...]]:
    """Path of each float leaf that a config's model keeps as int8 -> the axes that its products sum over (negative)."""
    abstract = abstract_weights(config)
    leaves = jax.tree.leaves(abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))
    told = zip(leaf_paths(abstract), (leaf.get_metadata() for leaf in leaves), strict=True)
    return {path.removesuffix(f"/{PARTS[0]}"): tuple(data["summed"]) for path, data in told if "summed" in data}


def check_scales(where: object, config: Config, model) -> None:
    """Raises CheckpointError that names every scale of an int8 model with a negative number: `quantized` makes none."""
    names = {f"{path}/{PARTS[1]}" for path in matrices(config)}
    scales = {path: leaf for path, leaf in zip(leaf_paths(model), jax.tree.leaves(model), strict=True) if path in names}
    below = jax.device_get(jax.tree.map(lambda scale: jnp.any(scale < 0), scales))
    if bad := [path for path in scales if below[path]]:
        raise CheckpointError(f"{where}: scales below 0, which no int8 matrix has: {', '.join(bad)}")


def each(config: Config, mesh: Mesh, form: str) -> Callable:
    """each(path, array) of a float model's leaves: an array, or, of a matrix, an Int8 that lies as the model's does.

    One leaf at a time, so that beside the new model one float leaf is held.
    """
    config = with_int8(config, form)
    placed = dict(zip(*_leaves(config, mesh), strict=True))
    summed = matrices(config)

    def one(path: str, array: jax.Array):
        if path not in summed:
            return array
        shardings = Int8(*(placed[f"{path}/{part}"].sharding for part in PARTS))
        with jax.set_mesh(mesh):
            return jax.jit(functools.partial(quantized, summed=summed[path]), out_shardings=shardings)(array)

    return one


def assembled(config: Config, mesh: Mesh, model):
    """The model of an int8 config, out of a tree of floats in whose matrices' places stand Int8."""
    found = {}
    variables = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
    for path, variable in zip(leaf_paths(model), variables, strict=True):
        arrays = jax.tree.leaves(variable)
        found |= dict(zip([f"{path}/{part}" for part in PARTS] if len(arrays) > 1 else [path], arrays, strict=True))
    paths, _ = _leaves(config, mesh)
    return jax.tree.unflatten(jax.tree.structure(abstract_model(config, mesh)), [found[path] for path in paths])


def _leaves(config: Config, mesh: Mesh) -> tuple[list[str], list]:
    abstract = abstract_model(config, mesh)
    return leaf_paths(abstract), jax.tree.leaves(abstract)
