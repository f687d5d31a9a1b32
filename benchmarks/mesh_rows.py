"""The rows that `benchmarks.mesh` trains on, their place on a mesh, and the losses of the first weights on them."""

import dataclasses

import jax
import numpy as np

from mm01_jax import sharding
from mm01_jax.config import Config
from mm01_jax.data import pipeline
from mm01_jax.data.batch import Batch
from mm01_jax.inference.scoring import score
from mm01_jax.parallel import sequence_layout
from mm01_jax.train import step

DOCUMENT = 4096  # tokens at most


def rows(config: Config, at: int, length: int | None = None, document: int = DOCUMENT) -> Batch:
    """Step `at`'s rows: an odd number of documents, so that one lies across the middle; ids even over a quarter of the
    vocabulary, so that no expert is popular and there is something to learn."""
    shape = (config.train.batch_size, length or config.train.sequence_length)
    tokens = np.random.default_rng(at).integers(0, config.model.vocab_size // 4, (shape[0], shape[1] + 1), np.int32)
    size = -(-shape[1] // (-(-shape[1] // document) | 1))
    place = np.arange(shape[1], dtype=np.int32)
    segments, positions = (np.broadcast_to(x, shape) for x in (place // size, place % size))
    weights = np.ones(shape, np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], positions, segments, weights)


def place(batch: Batch, config: Config, mesh: jax.sharding.Mesh) -> Batch:
    order = sequence_layout.order(config.train.sequence_length, config.mesh, config.compute.sequence_layout)
    return pipeline.whole_to_global(batch, sharding.named(mesh, config.mesh.rules, "batch", "seq"), order)


def first_losses(config: Config, dtype: str, count: int) -> list[float]:
    """Losses of `count` steps' rows at the first weights, on one GPU in `dtype`."""
    config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, dtype=dtype))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])

    def loss(key, batch):
        total, weight = score(step.init_state(config, key).model, batch, chunk=config.train.loss_chunk)
        return total / weight

    with jax.set_mesh(mesh):
        first = place(rows(config, 0), config, mesh)
        compiled = jax.jit(loss).lower(jax.random.key(config.train.seed), first).compile()
        batches = (place(rows(config, i), config, mesh) for i in range(count))
        return [float(compiled(jax.random.key(config.train.seed), batch)) for batch in batches]
