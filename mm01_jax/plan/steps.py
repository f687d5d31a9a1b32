"""The steps that are planned, as functions and the shapes they are called with: the very ones that run.

    train     one optimiser step on a global batch (train/step.py)
    prefill   one chunk of a prompt into the cache (inference/steps.py)
    decode    one token for every row (inference/steps.py)

For prefill and decode `train.batch_size` is the number of rows, `train.sequence_length` the length of their cache, and
weights are stored in the compute dtype, as inference loads them.

A VL model trains on rows of which images take a quarter, and a prompt shows one image of the most tiles.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from mm01_jax import sharding
from mm01_jax.config import Config
from mm01_jax.config.mesh import of_answers
from mm01_jax.data.batch import Batch
from mm01_jax.inference.steps import CHUNK, decode_step, prefill
from mm01_jax.model.abstract import abstract, abstract_model
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.mixers import cache_specs, empty_cache
from mm01_jax.parallel.overlap import compiler_options
from mm01_jax.train import step as training
from pallas_kernels import dispatch

KINDS = ("train", "prefill", "decode")
IMAGE_SHARE = 1 / 4  # of a VL model's training tokens


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted function, its arguments as ShapeDtypeStructs with shardings, and what the parts of them are.

    parts: name of a part ("parameters", "optimizer", "cache", "batch") -> its arrays. tokens: taken in by one call.
    """

    function: Callable
    arguments: tuple
    parts: dict[str, Any]
    tokens: int


def make_step(kind: str, config: Config, mesh: Mesh | AbstractMesh) -> Step:
    """The step of `kind` on a mesh, which is in force (`jax.set_mesh`) when this is called."""
    return _train(config, mesh) if kind == "train" else _infer(kind, config, mesh)


def _train(config: Config, mesh) -> Step:
    state = training.abstract_state(config, mesh)
    shape = (config.train.batch_size, config.train.sequence_length)
    placed = sharding.named(mesh, config.mesh.rules, "batch", "seq")
    ids, weights = (jax.ShapeDtypeStruct(shape, dtype, sharding=placed) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(tokens=ids, targets=ids, positions=ids, segments=ids, weights=weights)
    if config.vision is not None:
        side = config.vision.image_size
        tiles = (shape[0], tiles_of_row(config), 3, side, side)
        batch = batch._replace(tiles=jax.ShapeDtypeStruct(tiles, jnp.float32, sharding=placed), image_index=ids)
    # As the training loop jits it.
    function = jax.jit(
        functools.partial(training.train_step, config=config),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
        compiler_options=compiler_options(dispatch.platform(), config.compute.collectives),
    )
    parts = {"parameters": state.model, "optimizer": (state.step, state.opt_state), "batch": batch}
    return Step(function, (state, batch), parts, shape[0] * shape[1])


def tiles_of_row(config: Config) -> int:
    """Tiles whose patches, and newlines like those of whole tiles, take IMAGE_SHARE of a row of training."""
    vision = config.vision
    of_tile = vision.num_patches + vision.image_size // vision.patch_size
    return _dealt(config.train.sequence_length * IMAGE_SHARE / of_tile, config)


def _dealt(tiles: float, config: Config) -> int:
    """At least so many, as many on every sequence shard."""
    shards = config.mesh.shards("seq")
    return math.ceil(tiles / shards) * shards


def _infer(kind: str, config: Config, mesh) -> Step:
    compute = dataclasses.replace(config.compute, param_dtype=config.compute.dtype, reduce_dtype="auto")
    mesh_config = dataclasses.replace(config.mesh, rules=of_answers(config.mesh.rules))
    config = dataclasses.replace(config, compute=compute, mesh=mesh_config)
    rules, rows = config.mesh.rules, config.train.batch_size
    model, cache = abstract_model(config, mesh), _abstract_cache(config, mesh)

    def of_rows(dtype, *shape):
        cut = ("seq",) if len(shape) == 1 else ()  # the tokens of a chunk
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding.named(mesh, rules, "batch", *cut))

    if kind == "prefill":
        chunk = min(CHUNK * config.mesh.shards("seq"), config.train.sequence_length)
        function, batch = prefill, (of_rows(jnp.int32, chunk), of_rows(jnp.int32))
        if config.vision is not None:
            tiles = _dealt(1 + max(math.prod(grid) for grid in config.vision.grids), config)
            features = (tiles, config.vision.num_patches, config.model.embed_dim)
            batch += (of_rows(jnp.dtype(compute.dtype), *features), of_rows(jnp.int32, chunk))
    else:
        function = jax.jit(decode_step, donate_argnums=1)
        chunk, batch = 1, (of_rows(jnp.int32), of_rows(jnp.bool_))
    parts = {"parameters": model, "cache": cache, "batch": batch}
    return Step(function, (model, cache, *batch), parts, rows * chunk)


def _abstract_cache(config: Config, mesh) -> DecodeCache:
    model, rules, train = config.model, config.mesh.rules, config.train
    specs = cache_specs(model, rules)
    return abstract(
        lambda: empty_cache(model, config.compute, rules, train.batch_size, train.sequence_length),
        lambda _: jax.tree.map(functools.partial(jax.NamedSharding, mesh), specs),
    )
