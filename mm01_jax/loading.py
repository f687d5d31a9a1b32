"""A trained model from a checkpoint: its weights, its tokenizer and the config that was saved with them."""

import dataclasses
import json

import jax
from flax import nnx

from mm01_jax import checkpoint
from mm01_jax.config import Config, saved
from mm01_jax.data.tokenizer import Tokenizer, open_tokenizer
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings


def load(directory: str) -> tuple[TextModel, Tokenizer, Config]:
    """The model of a checkpoint in its compute dtype on one device, its tokenizer and its config.

    Call under `jax.set_mesh` of a mesh whose axes all have size 1.
    """
    config = saved.from_json(json.dumps(checkpoint.load_config(directory)))
    mesh_config = dataclasses.replace(config.mesh, data=1, expert=1, tensor=1, sequence=1)
    config = dataclasses.replace(config, mesh=mesh_config)
    model_config = dataclasses.replace(config.model, param_dtype=config.model.dtype)
    mesh = jax.sharding.get_mesh()
    shapes = jax.eval_shape(
        lambda key: TextModel(model_config, mesh_config.rules, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    placed = shardings(shapes, mesh, mesh_config.rules)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
    return checkpoint.load_weights(directory, abstract), open_tokenizer(config.data.tokenizer), config
