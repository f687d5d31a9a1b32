"""Floating-point operations of a training step, counted for the hybrid.

Model FLOPs: what the mathematics needs, 2 a multiply-add, backward = 2 x forward; recomputation (remat) is not work.

    projections, experts, head   2 x the weights that a token multiplies
    mixing                       what each mixer says (`flops`); a token of a full row sees (S + 1) / 2 keys on average
    a tile                       2 x the weights that a patch multiplies; each patch sees all P of its tile
"""

import math

import jax
from flax import nnx

from mm01_jax.config import ComputeConfig, ModelConfig, Rules, VisionConfig
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import ShapesAlone
from mm01_jax.model.mixers import MIXERS
from mm01_jax.model.vision import CHANNELS


def active_weights(config: ModelConfig) -> int:
    """Matrix weights that one token multiplies, embedding lookup excluded, head included.

    Those are the leaves with the model's width as an axis; of the experts' a token meets as many as it is assigned to.
    """
    model = jax.eval_shape(lambda: TextModel(config, ComputeConfig(), Rules(), rngs=ShapesAlone()))
    total = 0
    for weight in jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        axes = weight.get_metadata()["axes"]
        if "embed" in axes:
            size = math.prod(weight.shape)
            total += size * config.num_experts_per_token // config.num_experts if "expert" in axes else size
    return total - config.vocab_size * config.embed_dim


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Model FLOPs of forward and backward for one token of a full row."""
    num_keys = (sequence_length + 1) / 2
    mixing = sum(MIXERS[kind].flops(config, num_keys) for kind in config.period)
    return 3.0 * (2.0 * active_weights(config) + config.num_periods * mixing)


def tower_flops_per_tile(vision: VisionConfig) -> float:
    """Forward FLOPs of the vision transformer for one tile, class token included; the projector is apart."""
    W, P = vision.embed_dim, vision.num_patches + 1
    block = 2.0 * P * (4 * W * W + 2 * W * vision.mlp_dim) + 4.0 * P * P * W
    return 2.0 * vision.num_patches * vision.patch_size**2 * CHANNELS * W + vision.num_layers * block


def projector_flops_per_tile(vision: VisionConfig, config: ModelConfig) -> float:
    """Forward FLOPs of the projector for one tile, whose class token it never sees."""
    return 2.0 * vision.num_patches * (vision.embed_dim + config.embed_dim) * config.embed_dim


def mfu(flops_per_second: float, peak: float, num_devices: int) -> float:
    """Model FLOPs utilisation: the share of what all devices could do at their peak."""
    return flops_per_second / (peak * num_devices)
