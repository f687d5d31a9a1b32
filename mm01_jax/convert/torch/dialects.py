"""The dialects of released checkpoints: how they name tensors and spell their config.json (docs/model.md A.1, B, C.1).

| dialect    | text tensors             | beside them                     |
| original   | model.*, lm_head.*       |                                 |
| m1         | the same                 |                                 |
| native     | the same                 | decay buffers, if they are kept |
| vl-01      | language_model.model.* … | vision tower, projector         |
"""

import dataclasses
from typing import Any

from mm01_jax.convert import table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """`constants` are the fields of config.json that never vary, and defaults of those that change no number."""

    name: str
    model_types: tuple[str, ...]  # the first is written
    architecture: str
    constants: dict[str, Any]
    native: bool = False  # transformers' own class: its names of fields, its decay buffers
    vision: bool = False

    def torch_name(self, tensor: table.Tensor) -> str:
        """The tensor's name in this dialect's files."""
        return "language_model." + tensor.name if tensor.leaf.startswith("text/") else tensor.name


_COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 10240000,
    "output_router_logits": False,
    "postnorm": True,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_VL_TOP = {
    "ignore_index": -100,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
}
VISION_CONSTANTS = {
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "vocab_size": 32000,
}


def _auto_map(module: str, config: str, model: str, auto: str = "AutoModelForCausalLM") -> dict[str, str]:
    return {"AutoConfig": f"configuration_{module}.{config}", auto: f"modeling_{module}.{model}"}


DIALECTS = {
    "original": Dialect(
        name="original",
        model_types=("minimax_text_01", "MiniMaxText01"),
        architecture="MiniMaxText01ForCausalLM",
        constants=_COMMON
        | {"auto_map": _auto_map("minimax_text_01", "MiniMaxText01Config", "MiniMaxText01ForCausalLM")},
    ),
    "m1": Dialect(
        name="m1",
        model_types=("minimax_m1", "MiniMaxM1"),
        architecture="MiniMaxM1ForCausalLM",
        constants=_COMMON | {"auto_map": _auto_map("minimax_m1", "MiniMaxM1Config", "MiniMaxM1ForCausalLM")},
    ),
    "native": Dialect(
        name="native",
        model_types=("minimax",),
        architecture="MiniMaxForCausalLM",
        constants=_COMMON | {"block_size": 256},
        native=True,
    ),
    "vl-01": Dialect(
        name="vl-01",
        model_types=("minimax_vl_01", "MiniMaxVL01"),
        architecture="MiniMaxVL01ForConditionalGeneration",
        constants=_VL_TOP
        | {
            "auto_map": _auto_map("minimax_vl_01", "MiniMaxVL01Config", "MiniMaxVL01ForConditionalGeneration"),
        },
        vision=True,
    ),
}
VL_TEXT_CONSTANTS = _COMMON | {"max_position_embeddings": 8192, "shared_intermediate_size": [0]}
