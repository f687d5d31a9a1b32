"""A model's shapes are those of one whose weights are drawn."""

import dataclasses

import jax
import pytest
from flax import nnx

from mm01_jax.config import VisionConfig
from mm01_jax.model.abstract import abstract_weights
from mm01_jax.model.multimodal import build
from tests import small

VISION = VisionConfig(image_size=28, patch_size=14, embed_dim=16, num_layers=2, num_heads=2, mlp_dim=32)
CONFIG = small.config("texts")
CONFIGS = {
    "text": CONFIG,
    "int8": dataclasses.replace(CONFIG, compute=dataclasses.replace(CONFIG.compute, quantize="int8_attention")),
    "vision": dataclasses.replace(CONFIG, vision=VISION),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_made_for_its_shapes_has_those_of_one_that_is_drawn(name):
    drawn = jax.eval_shape(lambda: build(CONFIGS[name], rngs=nnx.Rngs(params=0)))
    found = abstract_weights(CONFIGS[name])
    assert jax.tree.structure(found) == jax.tree.structure(drawn)
    assert jax.tree.leaves(found) == jax.tree.leaves(drawn)
