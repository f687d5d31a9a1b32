"""What torch and transformers need for the work of a part of the training step, where they are installed.

They are no dependencies: looked up by name when a benchmark asks, and nowhere else. Weights and activations are
bfloat16 on both sides, their gradients too.
"""

import importlib
from collections.abc import Callable
from typing import Any

from mm01_jax.config import Config


def grouped_products(config: Config, device: str = "cuda") -> Callable[[], Any]:
    """The nine grouped products of one expert layer, forward and backward, and nothing between them.

    Rows stand sorted by expert already, as many for each expert; SwiGLU, gathers and sums are left out.
    """
    torch, model = importlib.import_module("torch"), config.model
    E, D, F = model.num_experts, model.embed_dim, model.expert_dim
    R = config.train.batch_size * config.train.sequence_length * model.num_experts_per_token

    def random(*shape: int):
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    x, hidden, gate, up, down = random(R, D), random(R, F), random(E, D, F), random(E, D, F), random(E, F, D)
    dy, d_gate, d_up = random(R, D), random(R, F), random(R, F)
    ends = torch.arange(1, E + 1, device=device, dtype=torch.int32) * (R // E)

    def multiply(left, right):
        return torch._grouped_mm(left, right, offs=ends)

    def run():
        forward = multiply(x, gate), multiply(x, up), multiply(hidden, down)
        d_hidden = multiply(dy, down.transpose(1, 2))
        d_rows = multiply(d_gate, gate.transpose(1, 2)), multiply(d_up, up.transpose(1, 2))
        d_weights = multiply(x.t(), d_gate), multiply(x.t(), d_up), multiply(hidden.t(), dy)
        return forward, d_hidden, d_rows, d_weights

    return run


def language_model(config: Config, device: str = "cuda", **settings) -> Callable[[], Any]:
    """transformers' MiniMaxForCausalLM of these sizes, forward and backward of one batch; gives the loss.

    As it comes, with its checkpointing of layers. Its RoPE turns whole heads, which is no less work than ours.

    settings: of the model, as `experts_implementation`.
    """
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            described(config), dtype=torch.bfloat16, attn_implementation="sdpa", **settings
        )
    model.train()
    model.gradient_checkpointing_enable()
    size = config.train.batch_size, config.train.sequence_length
    ids = torch.randint(0, config.model.vocab_size, size, device=device)

    def run():
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.detach()

    return run


def described(config: Config, *, use_cache: bool = False):
    """transformers' config of these sizes."""
    shape, kinds = config.model, {"lightning": "linear_attention", "softmax": "full_attention"}
    named = {f"{ours}_{of}_factor": getattr(shape, f"{theirs}_{of}") for ours, theirs in FACTORS for of in OF}
    return importlib.import_module("transformers").MiniMaxConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.embed_dim,
        intermediate_size=shape.expert_dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        num_local_experts=shape.num_experts,
        num_experts_per_tok=shape.num_experts_per_token,
        layer_types=[kinds[kind] for kind in shape.period] * shape.num_periods,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        use_cache=use_cache,
        **named,
    )


FACTORS = (("linear_attn", "lightning"), ("full_attn", "softmax"), ("mlp", "experts"))
OF = ("alpha", "beta")
