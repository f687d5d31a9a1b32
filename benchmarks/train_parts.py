"""What the training step's bench measures: a whole step, its gradient alone, one period of layers, one expert layer.

Each is lowered here, so that all can be compiled at once, and says what the mathematics of one call needs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import mesh as meshes
from mm01_jax import sharding
from mm01_jax.config import Config
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.flops import train_flops_per_token
from mm01_jax.parallel.experts.layer import expert_layer
from mm01_jax.train.objectives import pretrain


@dataclasses.dataclass(frozen=True)
class Part:
    """A lowered program, how it is called, and its work.

    start() gives what the first call takes; run(compiled, state, number) gives the next state and the loss or None;
    wait(value) returns when what it waits for is there. tokens, flops: of one call.
    """

    lowered: jax.stages.Lowered
    start: Callable[[], Any]
    run: Callable[[Any, Any, int], tuple[Any, Any]]
    tokens: int
    flops: float
    wait: Callable[[Any], Any] = jax.block_until_ready


def training_step(config: Config) -> Part:
    """One optimiser step: rows that differ from call to call, the state of the last one donated."""
    mesh, (train, initial) = meshes.trace(config)
    tokens = config.train.batch_size * config.train.sequence_length
    compiled_start = functools.cache(lambda: initial.compile())

    @functools.cache
    def batch(number: int):
        return meshes.place(meshes.rows(config, number), config, mesh)

    def run(compiled, state, number: int):
        state, metrics = compiled(state, batch(number % 8))
        return state, metrics["loss"]

    def start():
        return compiled_start()(jax.random.key(config.train.seed))

    return Part(train, start, run, tokens, tokens * train_flops_per_token(config.model, config.train.sequence_length))


def forward_backward(config: Config) -> Part:
    """Loss and gradients of one batch, no optimiser; weights as `compute.param_dtype` stores them."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    batch = meshes.place(meshes.rows(config, 0), config, mesh)

    def gradient(model):
        def objective(model):
            return pretrain.objective(model, batch, jnp.sum(batch.weights), 1.0, config.train)[0]

        return jax.value_and_grad(objective)(model)

    tokens = batch.tokens.size
    flops = tokens * train_flops_per_token(config.model, config.train.sequence_length)
    return _of_model(config, mesh, gradient, tokens, flops)


def period(config: Config) -> Part:
    """Forward and backward of the layers of one period on one row, without embedding, head and loss."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_periods=1, vocab_size=128))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    B, S, D = config.train.batch_size, config.train.sequence_length, config.model.embed_dim
    positions = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    shape = jax.ShapeDtypeStruct((B, S, D), config.compute.dtype)

    def gradient(model, x, d_out):
        def inner(model, x):
            hidden = model.forward(x, positions, jnp.zeros_like(positions))[0]
            return jnp.sum(hidden.astype(jnp.float32) * d_out.astype(jnp.float32))

        return jax.value_and_grad(inner, argnums=(0, 1))(model, x)

    head = 6.0 * config.model.vocab_size * D
    flops = B * S * (train_flops_per_token(config.model, S) - head)
    return _of_model(config, mesh, gradient, B * S, flops, (shape, shape))


def experts(config: Config) -> Part:
    """Forward and backward of one expert layer: route, sort, gather, SwiGLU, combine; weights in the compute dtype."""
    mesh, model, dtype = sharding.make_mesh(config.mesh, jax.devices()[:1]), config.model, config.compute.dtype
    B, S, D = config.train.batch_size, config.train.sequence_length, model.embed_dim
    E, F, A = model.num_experts, model.expert_dim, model.num_experts_per_token
    shapes = ((B, S, D), (B, S, D), (D, E), (E, D, F), (E, D, F), (E, F, D))
    documents = jnp.zeros((B, S), jnp.int32)

    def start():
        keys = jax.random.split(jax.random.key(0), len(shapes))
        scaled = zip(keys, shapes, (1.0, 1.0, *(D**-0.5,) * 3, F**-0.5), strict=True)
        return tuple((scale * jax.random.normal(key, shape)).astype(dtype) for key, shape, scale in scaled)

    def both(x, d_out, *weights):
        def layer(x, weights):
            return expert_layer(x, documents, weights, config=model, compute=config.compute, rules=config.mesh.rules)[0]

        y, pull = jax.vjp(layer, x, weights)
        return y, pull(d_out)

    with jax.set_mesh(mesh):
        lowered = jax.jit(both).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    return Part(lowered, start, lambda c, args, _: (args, c(*args)[0][0, 0, 0]), B * S, B * S * 18.0 * A * D * F)


def abstract_weights(config: Config) -> TextModel:
    """Shapes of a config's weights."""
    return jax.eval_shape(lambda: TextModel(config.model, config.compute, config.mesh.rules, rngs=nnx.Rngs(params=0)))


def _of_model(config: Config, mesh, gradient: Callable, tokens: int, flops: float, shapes: tuple = ()) -> Part:
    """A part that takes the model's weights, and random arrays of these shapes, and gives a scalar and gradients."""

    def make(key):
        return TextModel(config.model, config.compute, config.mesh.rules, rngs=nnx.Rngs(key))

    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient).lower(jax.eval_shape(make, jax.random.key(0)), *shapes)

    def start():
        key = jax.random.key(np.int32(config.train.seed))
        randoms = (jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(shapes))
        return jax.jit(make)(key), *randoms

    def run(compiled, arguments, number: int):
        loss, _ = compiled(*arguments)
        return arguments, loss

    return Part(lowered, start, run, tokens, flops)


PARTS = {"step": training_step, "forward_backward": forward_backward, "period": period, "experts": experts}
