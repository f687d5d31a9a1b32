"""A model from any kind of directory on any mesh: each host reads what its devices hold, and little else."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mm01_jax import sharding
from mm01_jax.checkpoint import Checkpoint, leaf_paths, open_checkpoint
from mm01_jax.config import Config, ConfigError, MeshConfig
from mm01_jax.config.causes import named_once
from mm01_jax.config.mesh import sharding_problems
from mm01_jax.convert import table
from mm01_jax.convert.sources import TorchSource, is_checkpoint, with_dtype
from mm01_jax.data.tokenizer import Tokenizer, open_tokenizer
from mm01_jax.model.abstract import abstract_model
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel


class Loaded(NamedTuple):
    """A trained model, its tokenizer, and the config that was saved with it, on the mesh it is on."""

    model: TextModel
    tokenizer: Tokenizer
    config: Config


def load(path: str) -> Loaded:
    """The text model of one of our checkpoints in its compute dtype on one device.

    Call under `jax.set_mesh` of a mesh whose axes all have size 1.

    Raises: as `load_model`.
    """
    mesh = jax.sharding.get_mesh()
    opened = open_checkpoint(path)
    config = dataclasses.replace(opened.config, mesh=_sized(opened.config.mesh, mesh))
    return Loaded(_restore(opened, mesh, config.compute.dtype), open_tokenizer(config.data.tokenizer), config)


def load_model(path, *, mesh: Mesh | None = None, dtype: str | None = None) -> TextModel | VLModel:
    """The model in `path`: a PyTorch directory of any dialect, or a checkpoint of ours (its newest sound step).

    A VL-01 directory gives the whole parameter tree; its `text` is the text model.

    Args:
      mesh: axes data, expert, tensor, sequence (`sharding.make_mesh`); None is the first device alone.
      dtype: "bfloat16" or "float32", of weights and computation; None keeps the weights' own.

    Raises:
      CheckpointError: the directory is damaged, or its config and tensors contradict each other.
      ValueError: a mesh axis does not divide a dim of the model.
    """
    if dtype not in (None, "bfloat16", "float32"):
        raise ValueError(f"dtype={dtype!r}; allowed: 'bfloat16', 'float32', None")
    mesh = mesh or sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    if is_checkpoint(path):
        return _restore(open_checkpoint(path), mesh, dtype)
    source = TorchSource(path)
    if source.dtype == "float16" and dtype is None:
        raise ValueError("dtype=None: the weights are float16; choose 'bfloat16' or 'float32'")
    return _convert(source, mesh, dtype)


def _restore(opened: Checkpoint, mesh: Mesh, dtype: str | None) -> TextModel | VLModel:
    """From our own format, whatever the mixers are: what conversion knows of them is not asked."""
    config = with_dtype(opened.config, dtype) if dtype else opened.config
    _check_mesh(config, mesh)
    return opened.restore(abstract_model(config, mesh), cast=True)


def _convert(source: TorchSource, mesh: Mesh, dtype: str | None) -> TextModel | VLModel:
    _check_mesh(source.config, mesh)
    abstract = abstract_model(with_dtype(source.config, dtype) if dtype else source.config, mesh)
    chunks = {(tensor.leaf, tensor.index): tensor for tensor in source.tensors}
    stacks = {path: leaf.stack for path, leaf in table.leaves(source.tensors).items()}
    arrays = [
        _array(source, {index: t for (leaf, index), t in chunks.items() if leaf == path}, stacks[path], shape)
        for path, shape in zip(leaf_paths(abstract), jax.tree.leaves(abstract), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _sized(config: MeshConfig, mesh: Mesh) -> MeshConfig:
    """The rules of `config` on the sizes of `mesh`."""
    return dataclasses.replace(config, **mesh.shape)


def _check_mesh(config: Config, mesh: Mesh) -> None:
    """Raises ValueError, by name, where a dim of the text model does not divide over the mesh."""
    placed = dataclasses.replace(config, mesh=_sized(config.mesh, mesh))
    # Its batch and length are a training run's, of which a converted config has placeholders.
    problems = named_once(placed, lambda other: [p for p in sharding_problems(other) if p.key.startswith("model.")])
    if problems:
        raise ConfigError(problems)


def _array(source: TorchSource, chunks: dict[tuple, table.Tensor], stack: int, like: jax.ShapeDtypeStruct):
    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, like.shape, strict=True))
        out = np.empty([s.stop - s.start for s in bounds], like.dtype)
        for at in itertools.product(*(range(s.start, s.stop) for s in bounds[:stack])):
            place = tuple(i - s.start for i, s in zip(at, bounds, strict=False))
            out[place] = source.read_box(chunks[at], bounds[stack:]).astype(like.dtype)
        return out

    return jax.make_array_from_callback(like.shape, like.sharding, read)
