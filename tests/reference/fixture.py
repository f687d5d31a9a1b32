"""The tiny model whose outputs the original code produced once (docs/model.md H): its shape, weights and outputs."""

import functools
import pathlib

import numpy as np

from tests.reference.config import ReferenceConfig

PATH = pathlib.Path(__file__).parents[1] / "fixtures" / "tiny_text01_fp32.npz"
SEED = 20250114
ALPHA = 2.0  # (2 * 8 layers)^(1/4)
NUM_STATES = 7

CONFIG = ReferenceConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=40,
    attn_type_list=(0, 0, 0, 0, 0, 0, 0, 1),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rotary_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    layernorm_linear_attention_alpha=ALPHA,
    layernorm_full_attention_alpha=ALPHA,
    layernorm_mlp_alpha=ALPHA,
)


@functools.cache
def load() -> dict[str, np.ndarray]:
    """`ids` (1, 300), `logits` (300, 97), `state0` ... `state6` (1, 4, 16, 16) and the weights as `w:<name>`."""
    with np.load(PATH) as file:
        return {name: file[name] for name in file.files}


def weights() -> dict[str, np.ndarray]:
    return {name[2:]: array for name, array in load().items() if name.startswith("w:")}
