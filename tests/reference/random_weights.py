"""Weights under their released names, drawn as the fixture's were (docs/model.md B.1, H)."""

import numpy as np

from tests.reference.config import LIGHTNING


def weight_shapes(config) -> dict[str, tuple[int, ...]]:
    """Name -> shape, matrices as (out, in)."""
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    n, k = config.num_attention_heads * h, config.num_key_value_heads * h
    lightning = {"qkv_proj": (3 * n, d), "output_gate": (n, d), "norm": (n,), "out_proj": (d, n)}
    softmax = {"q_proj": (n, d), "k_proj": (k, d), "v_proj": (k, d), "o_proj": (d, n)}
    shapes = {"model.embed_tokens": (config.vocab_size, d), "model.norm": (d,), "lm_head": (config.vocab_size, d)}
    for layer, kind in enumerate(config.attn_type_list):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.input_layernorm": (d,), f"{prefix}.post_attention_layernorm": (d,)}
        mixer = lightning if kind == LIGHTNING else softmax
        shapes |= {f"{prefix}.self_attn.{part}": shape for part, shape in mixer.items()}
        shapes[f"{prefix}.block_sparse_moe.gate"] = (config.num_local_experts, d)
        for e in range(config.num_local_experts):
            expert = {"w1": (f, d), "w2": (d, f), "w3": (f, d)}
            shapes |= {f"{prefix}.block_sparse_moe.experts.{e}.{part}": shape for part, shape in expert.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def random_weights(config, seed: int) -> dict[str, np.ndarray]:
    """float32 weights; names in sorted order draw from one legacy stream, so the fixture's seed gives its weights."""
    stream = np.random.RandomState(seed)
    return {name: _draw(stream, name, shape) for name, shape in sorted(weight_shapes(config).items())}


def _draw(stream, name: str, shape):
    z = stream.standard_normal(shape)
    if len(shape) == 1:
        z = 1.0 + 0.1 * z
    elif name.endswith(".gate.weight"):
        z = 2.0 * z / np.sqrt(shape[1])  # a sharp router: near-ties between experts are rare
    elif not name.endswith("embed_tokens.weight"):
        z = z / np.sqrt(shape[1])
    return z.astype(np.float32)
