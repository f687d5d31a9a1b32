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
from benchmarks import mesh_rows
from mm01_jax import sharding
from mm01_jax.config import Config
from mm01_jax.model.decoder import REMAT, LayerStack, TextModel
from mm01_jax.model.flops import train_flops_per_token
from mm01_jax.model.lightning import slopes
from mm01_jax.model.softmax import Softmax
from mm01_jax.model.tokens import Tokens
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


def training_step(config: Config, document: int = mesh_rows.DOCUMENT) -> Part:
    """One optimiser step: rows that differ from call to call, the state of the last one donated.

    document: tokens of one at most.
    """
    mesh, (train, initial) = meshes.trace(config)
    tokens = config.train.batch_size * config.train.sequence_length
    compiled_start = functools.cache(lambda: initial.compile())

    @functools.cache
    def batch(number: int):
        return meshes.place(meshes.rows(config, number, document=document), config, mesh)

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
    """Forward and backward of the layers of one period, without embedding, head and loss.

    A layer's weights and gradients are arrays of their own: a stack's gradient would be a second copy of all, which
    a step never makes.
    """
    mesh, shape, compute = sharding.make_mesh(config.mesh, jax.devices()[:1]), config.model, config.compute
    B, S, D = config.train.batch_size, config.train.sequence_length, shape.embed_dim
    positions = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    slopes_LN = slopes(shape.num_heads, shape.num_layers)[: len(shape.period)]
    array = jax.ShapeDtypeStruct((B, S, D), compute.dtype)

    def make(kind, key):
        return LayerStack(kind, shape, compute, config.mesh.rules, rngs=nnx.Rngs(key), stack=(1, 1))

    def one(slope_N, h, layer):
        layer = jax.tree.map(lambda weight: weight.reshape(weight.shape[2:]), layer)
        return layer(h, Tokens(slope_N, positions, jnp.zeros_like(positions), "contiguous"), None)[0]

    def gradient(layers, x, d_out):
        step = jax.jit(one if compute.remat == "none" else jax.checkpoint(one, policy=REMAT[compute.remat]))

        def inner(layers, h):
            for slope_N, layer in zip(slopes_LN, layers, strict=True):
                h = step(slope_N, h, layer)
            return jnp.sum(h.astype(jnp.float32) * d_out.astype(jnp.float32))

        return jax.value_and_grad(inner, argnums=(0, 1))(layers, x)

    makers = {kind: jax.jit(functools.partial(make, kind)) for kind in set(shape.period)}
    layers = [jax.eval_shape(makers[kind], jax.random.key(0)) for kind in shape.period]
    one_period = dataclasses.replace(shape, num_periods=1, vocab_size=128)
    flops = B * S * (train_flops_per_token(one_period, S) - 6.0 * 128 * D)
    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient).lower(layers, array, array)

    def start():
        keys = jax.random.split(jax.random.key(config.train.seed), len(shape.period) + 2)
        with jax.set_mesh(mesh):
            layers = [makers[kind](key) for kind, key in zip(shape.period, keys[2:], strict=True)]
        return layers, *(jax.random.normal(key, array.shape, array.dtype) for key in keys[:2])

    return Part(lowered, start, _loss_of, B * S, flops)


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


def softmax_share(config: Config) -> float:
    """Of a step's model FLOPs those of softmax attention's mixing."""
    model, length = config.model, config.train.sequence_length
    mixing = 3.0 * model.num_periods * model.period.count("softmax") * Softmax.flops(model, (length + 1) / 2)
    return mixing / train_flops_per_token(model, length)


def _of_model(config: Config, mesh, gradient: Callable, tokens: int, flops: float) -> Part:
    """A part that takes the model's weights and gives a scalar and gradients."""

    def make(key):
        return TextModel(config.model, config.compute, config.mesh.rules, rngs=nnx.Rngs(key))

    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient).lower(jax.eval_shape(make, jax.random.key(0)))
    key = jax.random.key(np.int32(config.train.seed))
    return Part(lowered, lambda: (jax.jit(make)(key),), _loss_of, tokens, flops)


def _loss_of(compiled, arguments, number: int):
    del number
    return arguments, compiled(*arguments)[0]


PARTS = {"step": training_step, "forward_backward": forward_backward, "period": period, "experts": experts}
