"""The shape of a model, under the names of the released `config.json`."""

import dataclasses

LIGHTNING, SOFTMAX = 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    attn_type_list: tuple[int, ...]  # one LIGHTNING or SOFTMAX per layer
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    rope_theta: float = 1e7
    rms_norm_eps: float = 1e-5
    lightning_norm_eps: float = 1e-6  # a class default of the original code: no config key reaches it
    layernorm_linear_attention_alpha: float = 1.0
    layernorm_linear_attention_beta: float = 1.0
    layernorm_full_attention_alpha: float = 1.0
    layernorm_full_attention_beta: float = 1.0
    layernorm_mlp_alpha: float = 1.0
    layernorm_mlp_beta: float = 1.0
    capacity_factor: float | None = None  # None is dropless

    @property
    def num_hidden_layers(self) -> int:
        return len(self.attn_type_list)
