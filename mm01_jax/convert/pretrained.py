"""A model on a mesh, from a directory of either kind: each host reads what its devices hold, and little else."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mm01_jax import sharding
from mm01_jax.checkpoint import leaf_paths
from mm01_jax.config import Config, ConfigError, MeshConfig
from mm01_jax.config.mesh import sharding_problems
from mm01_jax.convert import table
from mm01_jax.convert.sources import TorchSource, open_source, with_dtype
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings
from mm01_jax.model.vision import VLModel


def from_pretrained(path, *, mesh: Mesh | None = None, dtype: str | None = None) -> TextModel | VLModel:
    """The model in `path`: a PyTorch directory of any dialect, or a checkpoint of ours (its newest sound step).

    A VL-01 directory gives the whole parameter tree; its `text` is the text model.

    Args:
      mesh: axes data, expert, tensor, sequence (`sharding.make_mesh`); None is the first device alone.
      dtype: "bfloat16" or "float32", of weights and computation; None keeps the weights' own.

    Raises:
      CheckpointError: the directory is damaged, or its config and tensors contradict each other.
      ValueError: a mesh axis does not divide a dim of the model.
    """
    source = open_source(path)
    if dtype not in (None, "bfloat16", "float32"):
        raise ValueError(f"dtype={dtype!r}; allowed: 'bfloat16', 'float32', None")
    if source.dtype == "float16" and dtype is None:
        raise ValueError("dtype=None: the weights are float16; choose 'bfloat16' or 'float32'")
    mesh = mesh or sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    _check_mesh(source.config, mesh)
    abstract = _abstract(with_dtype(source.config, dtype) if dtype else source.config, mesh)
    if not isinstance(source, TorchSource):
        return source.checkpoint.restore(abstract, cast=True)
    chunks = {(tensor.leaf, tensor.index): tensor for tensor in source.tensors}
    stacks = {path: leaf.stack for path, leaf in table.leaves(source.tensors).items()}
    arrays = [
        _array(source, {index: t for (leaf, index), t in chunks.items() if leaf == path}, stacks[path], wanted)
        for path, wanted in zip(leaf_paths(abstract), jax.tree.leaves(abstract), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _check_mesh(config: Config, mesh: Mesh) -> None:
    """Raises ValueError, by name, where a dim of the text model does not divide over the mesh."""
    placed = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **mesh.shape))
    # Its batch and length are a training run's, of which a converted config has placeholders.
    problems = [p for p in sharding_problems(placed) if p.key.startswith("model.")]
    if problems:
        raise ConfigError(problems)


def _abstract(config: Config, mesh: Mesh) -> Any:
    """The model as shapes, dtypes and shardings."""
    rules = config.mesh.rules

    def build() -> TextModel | VLModel:
        rngs = nnx.Rngs(params=0)
        if config.vision is None:
            return TextModel(config.model, rules, rngs=rngs)
        return VLModel(config.model, config.vision, rules, rngs=rngs)

    model = jax.eval_shape(build)
    where = jax.tree.leaves(shardings(model, mesh, rules))
    leaves = jax.tree.leaves(model)
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(leaves, where, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(model), placed)


def _array(source: TorchSource, chunks: dict[tuple, table.Tensor], stack: int, wanted: jax.ShapeDtypeStruct):
    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, wanted.shape, strict=True))
        out = np.empty([s.stop - s.start for s in bounds], wanted.dtype)
        for at in itertools.product(*(range(s.start, s.stop) for s in bounds[:stack])):
            place = tuple(i - s.start for i, s in zip(at, bounds, strict=False))
            out[place] = source.read_box(chunks[at], bounds[stack:]).astype(wanted.dtype)
        return out

    return jax.make_array_from_callback(wanted.shape, wanted.sharding, read)
