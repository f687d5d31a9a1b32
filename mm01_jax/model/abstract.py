"""A model as shapes, dtypes and shardings, without a number: what a checkpoint is read into and a plan is made of."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from mm01_jax.config import Config
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import ShapesAlone, shardings
from mm01_jax.model.multimodal import VLModel, build


def abstract[Tree](make: Callable[[], Tree], place: Callable[[Tree], Any]) -> Tree:
    """What `make` returns as ShapeDtypeStructs that carry the shardings `place` gives them; nothing is computed."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, place(shapes))


def abstract_model(config: Config, mesh: Mesh | AbstractMesh) -> TextModel | VLModel:
    """The model of `config` on a mesh, with its vision tower where it has one."""
    rules = config.mesh.rules
    return abstract(lambda: build(config, rngs=ShapesAlone()), lambda model: shardings(model, mesh, rules))


def abstract_weights(config: Config) -> TextModel | VLModel:
    """The same on no mesh: shapes, dtypes and logical axes."""
    return jax.eval_shape(lambda: build(config, rngs=ShapesAlone()))
