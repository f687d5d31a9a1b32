"""The model as inference runs it: the same weights, told otherwise. A view holds no array of its own.

`answering`: what a token gets does not depend on its neighbours, so no expert has a capacity, which other rows would
fill up, and no buffer a bound, beyond which a training step refuses itself.

`decoding`: a step has one token a row, which `sequence` cannot cut, so rows lie over it as well. The cache of prefill,
whose positions are cut, is whole on every shard of the sequence; decoding takes from it the rows of each.
"""

import dataclasses

import jax
from flax import nnx

from mm01_jax.config import Rules
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel


def answering[Model: TextModel | VLModel](model: Model) -> Model:
    """The model, dropless whatever it was trained with."""
    config = dataclasses.replace(model.config, routing="dropless")
    return _told(model, config=config, compute=dataclasses.replace(model.compute, dropless_bound=None))


def decoding[Model: TextModel | VLModel](model: Model, mesh: jax.sharding.Mesh) -> Model:
    """The model of one token a row; where nothing cuts the sequence, the model itself."""
    rules = model.rules
    cut = tuple(axis for axis in rules.seq if mesh.shape[axis] > 1)
    if not cut:
        return model
    return _told(model, rules=dataclasses.replace(rules, batch=(*rules.batch, *cut), seq=()))


def without_rows(rules: Rules) -> Rules:
    """The rules of one row, which every shard of the rows has."""
    return dataclasses.replace(rules, batch=())


def _told[Model: TextModel | VLModel](model: Model, **settings) -> Model:
    """A copy of the modules, around the same arrays, with other settings wherever they have such."""
    copy = jax.tree.map(lambda array: array, model)
    for _, module in nnx.iter_modules(copy):
        for name, value in settings.items():
            if isinstance(vars(module).get(name), type(value)):
                setattr(module, name, value)
    return copy
