"""The model as inference runs it: the same weights, told otherwise. A view holds no array of its own.

`answering`: what a token gets does not depend on its neighbours, so no expert has a capacity, which other rows would
fill up, and no buffer a bound, beyond which a training step refuses itself.

`decoding`: a step has one token a row, which `sequence` cannot cut, so rows lie over it as well. The cache of prefill,
whose positions are cut, is whole on every shard of the sequence; decoding takes from it the rows of each.

`computing`: another dtype of activations.

`routed`: its statistics say which experts every token went to.

`deterministic`: its answers have the bits of training's forward (`model/deterministic.py`).
"""

import dataclasses

import jax
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import Rules
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.deterministic import BY_ROW, ByRowConfig, filled, least_rows, real
from mm01_jax.model.experts import Experts
from mm01_jax.model.multimodal import VLModel


def answering[Model: TextModel | VLModel](model: Model) -> Model:
    """The model, dropless whatever it was trained with."""
    config = dataclasses.replace(model.config, routing="dropless")
    return _told(model, config=config, compute=dataclasses.replace(model.compute, dropless_bound=None))


def computing[Model: TextModel | VLModel](model: Model, **changes) -> Model:
    """The model with other fields of its `compute`: another dtype, of the same weights."""
    return _told(model, compute=dataclasses.replace(model.compute, **changes))


def routed[Model: TextModel | VLModel](model: Model) -> Model:
    """The model whose router statistics have `choice`, (layers, B, S, A)."""
    copy = jax.tree.map(lambda array: array, model)
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, Experts):
            module.tells = True
    return copy


def decoding(model: TextModel | VLModel, mesh: jax.sharding.Mesh) -> TextModel:
    """The text model of one token a row; where nothing cuts the sequence, the text model itself."""
    model = model.text if isinstance(model, VLModel) else model
    rules = model.rules
    cut = tuple(axis for axis in rules.seq if mesh.shape[axis] > 1)
    if not cut:
        return model
    return _told(model, rules=dataclasses.replace(rules, batch=(*rules.batch, *cut), seq=()))


def without_rows(rules: Rules) -> Rules:
    """The rules of one row, which every shard of the rows has."""
    return dataclasses.replace(rules, batch=())


class TextModelByRow(TextModel):
    """The text model of such layers: with a cache its stream has the rows that they need."""

    def forward(self, x_BSD, positions_BS, segments_BS, cache=None):
        if cache is None:
            return super().forward(x_BSD, positions_BS, segments_BS)
        S, least = x_BSD.shape[1], least_rows(x_BSD.shape[0], self.config, self.rules)
        hidden, cache, stats = super().forward(filled(x_BSD, least), positions_BS, segments_BS, cache)
        if stats.choice is not None:
            stats = dataclasses.replace(stats, choice=stats.choice[:, :, :S])
        return real(hidden, S), cache, stats

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        S, least = hidden_BSD.shape[1], least_rows(hidden_BSD.shape[0], self.config, self.rules)
        return real(super().logits(filled(hidden_BSD, least)), S)


def deterministic[Model: TextModel | VLModel](model: Model) -> Model:
    """The model whose log-probabilities with a cache are those of its forward without one, to the bit on a CPU.

    Raises:
      ValueError: the model drops tokens (training is then no function of one row), or its mesh cuts the sequence.
    """
    if model.config.routing != "dropless":
        raise ValueError(f"deterministic: got routing={model.config.routing!r}; allowed: 'dropless', as it was trained")
    if cut := {
        axis: size for axis, size in sharding.mesh_of(model).shape.items() if axis in model.rules.seq and size > 1
    }:
        raise ValueError(f"deterministic: got a mesh with {cut}; allowed: one that does not cut the sequence")
    names = [field.name for field in dataclasses.fields(model.config)]
    view = _told(model, config=ByRowConfig(**{name: getattr(model.config, name) for name in names}))
    by_row = BY_ROW | {TextModel: TextModelByRow}
    for _, module in nnx.iter_modules(view):
        module.__class__ = by_row.get(type(module), type(module))
    return view


def _told[Model: TextModel | VLModel](model: Model, **settings) -> Model:
    """A copy of the modules, around the same arrays, with other settings wherever they have such."""
    copy = jax.tree.map(lambda array: array, model)
    for _, module in nnx.iter_modules(copy):
        for name, value in settings.items():
            if isinstance(value, type(vars(module).get(name))):
                setattr(module, name, value)
    return copy
