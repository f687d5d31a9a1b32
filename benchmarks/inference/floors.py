"""The least that a part of inference can take: bytes that must be read or written, FLOPs that must be done."""

import math

import jax
import numpy as np
from flax import nnx

from mm01_jax.config import ModelConfig
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.flops import active_weights
from mm01_jax.model.mixers import MIXERS


def prefill_flops(config: ModelConfig, start: int, end: int) -> float:
    """FLOPs of the tokens from `start` to `end` of one row; of the head only the last token's."""
    tokens, keys = end - start, (start + end + 1) / 2
    mixing = config.num_periods * sum(MIXERS[kind].flops(config, keys) for kind in config.period)
    head = 2.0 * config.vocab_size * config.embed_dim
    return tokens * (2.0 * active_weights(config) - head + mixing) + head


def expert_bytes(model: TextModel) -> int:
    """Bytes of one expert of one layer, as it is stored."""
    config = model.config
    return _bytes(model, lambda axes: "expert" in axes) // (config.num_layers * config.num_experts)


def other_bytes(model: TextModel) -> int:
    """Bytes of all that every step reads: projections, norms, routers, head; of the embedding only rows."""
    return _bytes(model, lambda axes: "expert" not in axes and axes[:1] != ("vocab",))


def state_bytes(config: ModelConfig, rows: int) -> int:
    """Bytes of the states of lightning layers, float32."""
    layers = config.num_periods * sum(kind == "lightning" for kind in config.period)
    return 4 * rows * layers * config.num_heads * config.head_dim**2


def key_bytes(config: ModelConfig, rows: int, length: int, item: int = 2) -> int:
    """Bytes of keys and values of so many tokens a row."""
    layers = config.num_periods * sum(kind == "softmax" for kind in config.period)
    return 2 * item * rows * layers * length * config.num_kv_heads * config.head_dim


def decode_bytes(
    model: TextModel, rows: int, length: int, experts: float | None = None, ringed: int | None = None
) -> float:
    """Bytes of one step of `rows` tokens after `length` each: weights of the experts that are met (`experts` of each
    layer; None: as many as evenly routed tokens meet) and all others once, keys and values once, states in and out, or
    in each step in and in one of `ringed` steps in and out.
    """
    config = model.config
    met = config.num_layers * (expected_experts(config, rows) if experts is None else experts)
    read = other_bytes(model) + met * expert_bytes(model) + key_bytes(config, rows, length)
    return read + (2.0 if ringed is None else 1.0 + 2.0 / ringed) * state_bytes(config, rows)


def expected_experts(config: ModelConfig, rows: int) -> float:
    """Distinct experts that so many tokens choose, routed evenly."""
    E, A = config.num_experts, config.num_experts_per_token
    return E * (1.0 - (1.0 - A / E) ** rows)


def _bytes(model: TextModel, counts) -> int:
    leaves = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves if counts(leaf.get_metadata()["axes"])
    )
