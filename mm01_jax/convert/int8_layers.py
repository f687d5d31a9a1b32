"""A model and the same in int8, layer by layer: do the routers decide alike, how far apart are the layers' outputs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import sharding
from mm01_jax.model.decoder import LayerStack, TextModel
from mm01_jax.model.layers import rms_norm
from mm01_jax.model.tokens import Tokens
from mm01_jax.parallel.experts.router import route


class Layer(NamedTuple):
    """One layer: the share of tokens and choices in which the routers agree, when the layer of int8 is given what the
    other is given, and when it is given what the int8 layers before it made; ||out - int8's|| / ||out|| of the former.
    """

    same_inputs: float
    own_inputs: float
    output: float


def compare(model: TextModel, other: TextModel, ids_BS: np.ndarray) -> list[Layer]:
    """Every layer of `model` beside that of `other`, its int8 or the same in another dtype, on whole rows of ids."""
    layers = []
    with jax.set_mesh(sharding.mesh_of(model)):
        positions = jnp.broadcast_to(jnp.arange(ids_BS.shape[1], dtype=jnp.int32), ids_BS.shape)
        step = jax.jit(_step)
        h, own = model.embed_tokens(ids_BS), other.embed_tokens(ids_BS)
        for (slope, exact), (_, rough) in zip(_layers(model), _layers(other), strict=True):
            out, chosen = step(exact, slope, positions, h)
            same, same_chosen = step(rough, slope, positions, h.astype(own.dtype))
            own, own_chosen = step(rough, slope, positions, own)
            apart = jnp.linalg.norm(out - same.astype(out.dtype)) / jnp.linalg.norm(out)
            shares = [float(jnp.mean(x == chosen)) for x in (same_chosen, own_chosen)]
            layers.append(Layer(*shares, float(apart)))
            h = out
    return layers


def _layers(model: TextModel):
    """(slopes (N,), one layer) in the order of the model."""
    for period in range(model.config.num_periods):
        for stack, slopes_MnN in zip(model.stacks, model.slopes(), strict=True):
            for index in range(slopes_MnN.shape[1]):
                yield slopes_MnN[period, index], jax.tree.map(lambda w, at=(period, index): w[at], stack)


def _step(layer: LayerStack, slope_N, positions_BS, h_BSD):
    """(the layer's output, the experts that its router chooses, sorted)."""
    config, tokens = layer.config, Tokens(slope_N, positions_BS, jnp.zeros_like(positions_BS), "contiguous")
    x = rms_norm(h_BSD, layer.input_norm[...], config.norm_eps)
    y, _ = layer.mixer(x, tokens, None)
    h = layer.residual(x, y, *layer.mixer.residual(config))
    x = rms_norm(h, layer.post_norm[...], config.norm_eps)
    choice = route(x.reshape(-1, x.shape[-1]), layer.experts.router[...], config.num_experts_per_token)[0]
    y, _ = layer.experts(x, tokens)
    return layer.residual(x, y, config.experts_alpha, config.experts_beta), jnp.sort(choice, axis=1)
