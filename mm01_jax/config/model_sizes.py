"""How large a model's arrays are: each weight by itself, and what a piece of a prompt needs beside all of them.

Of any model that is meant the latter is a small part. Some of it grows with the square of a size, so that weights of a
few hundred kilobytes would ask for gigabytes.
"""

from collections.abc import Iterator

from mm01_jax.config import Config, ModelConfig, Problem, VisionConfig, fields

OF_ARRAYS = ("model.vocab_size", "model.embed_dim", "model.num_heads", "model.head_dim", "model.expert_dim")
_MOST_ELEMENTS = 2**32 - 1  # of one layer's array: what a chunk of a checkpoint holds
FLOOR = 2**23  # numbers, 32 MiB in float32, that any model may need
_TOKENS, _SLOT = 64, 256  # of a piece, and that a slot has at least (`inference/fitting.py`)


def arrays(config: Config) -> Iterator[Problem]:
    """One layer's array is at most what a checkpoint and an index of 32 bits can hold."""
    model = config.model
    qkv = 3 * model.num_heads * model.head_dim
    for key, size in (("vocab_size", model.vocab_size), ("num_heads", qkv), ("expert_dim", model.expert_dim)):
        if size * model.embed_dim > _MOST_ELEMENTS:
            most = _MOST_ELEMENTS // model.embed_dim * getattr(model, key) // size
            allowed = f"at most {most:,} for model.embed_dim={model.embed_dim}: an array has at most 2**32 - 1 elements"
            yield Problem(key=f"model.{key}", got=getattr(model, key), allowed=allowed, nearest=str(max(most, 1)))


def beside_weights(config: Config) -> Iterator[Problem]:
    """The fields that make more numbers than there are weights, and than `FLOOR`."""
    most = max(FLOOR, _weights(config.model) + (_tower_weights(config.vision) if config.vision else 0))
    for key, (what, needed) in _needed(config).items():
        if needed > most:
            got = fields.get(config, key)
            allowed = f"what makes at most {most:,} numbers of {what}, not {needed:,}: as many as there are weights"
            allowed += f", or {FLOOR:,}" if most == FLOOR else ""
            yield Problem(key=key, got=got, allowed=allowed, nearest=str(max(1, got * most // needed)))


def _needed(config: Config) -> dict[str, tuple[str, int]]:
    """Field -> (of what it makes many, how many numbers these have)."""
    model, vision = config.model, config.vision
    N, K, H, A, E = model.num_heads, model.num_kv_heads, model.head_dim, model.num_experts_per_token, model.num_experts
    lightning, softmax = _layers(model)
    found = {
        "model.head_dim": ("lightning attention's states", lightning * N * H * H),
        "model.num_heads": ("queries, keys and scores", _TOKENS * N * (_TOKENS + 6 * H)),
        "model.num_kv_heads": ("kept keys and values", softmax * _SLOT * 2 * K * H),
        "model.num_experts": ("the router's probabilities", _TOKENS * 3 * E),
        "model.num_experts_per_token": ("rows of experts", _TOKENS * A * (2 * model.embed_dim + 3 * model.expert_dim)),
    }
    if vision:
        found["vision.num_heads"] = "a tile's scores", vision.num_heads * (vision.num_patches + 1) ** 2
    return found


def _layers(model: ModelConfig) -> tuple[int, int]:
    """(layers of lightning attention, of softmax attention)."""
    lightning = model.period.count("lightning")
    return lightning * model.num_periods, (len(model.period) - lightning) * model.num_periods


def _weights(model: ModelConfig) -> int:
    """Of the matrices."""
    D, N, K, H, E = model.embed_dim, model.num_heads, model.num_kv_heads, model.head_dim, model.num_experts
    lightning, softmax = _layers(model)
    attention = lightning * 5 * N * H + softmax * 2 * (N + K) * H
    return D * (2 * model.vocab_size + attention + model.num_layers * E * (3 * model.expert_dim + 1))


def _tower_weights(vision: VisionConfig) -> int:
    W = vision.embed_dim
    return W * (vision.num_layers * (4 * W + 2 * vision.mlp_dim) + vision.num_patches + 3 * vision.patch_size**2)
