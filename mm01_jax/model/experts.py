"""Mixture of experts (paper 2.1, Eq. 1; docs/model.md A.6): router, expert weights and what the balance loss needs.

p = softmax_fp32(W_r x)     w = top-k(p) / sum(top-k(p))     y = sum_k w_k W_down_k( silu(W_gate_k x) * W_up_k x )
"""

import jax
from flax import nnx

from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.model.layers import cast_and_gather, param, xavier
from mm01_jax.model.tokens import Tokens
from mm01_jax.parallel.experts.layer import RouterStats, expert_layer


class Experts(nnx.Module):
    """Router and E SwiGLU experts of width F."""

    def __init__(
        self,
        config: ModelConfig,
        compute: ComputeConfig,
        rules: Rules,
        *,
        rngs: nnx.Rngs,
        stack: tuple[int, ...],
        gain: float,
    ):
        D, E, F, dtype = config.embed_dim, config.num_experts, config.expert_dim, compute.param_dtype
        self.router = param(rngs, (D, E), ("embed", None), xavier(D, E), stack=stack, dtype=dtype)
        inward, outward = ("expert", "embed", "ffn"), ("expert", "ffn", "embed")
        self.gate = param(rngs, (E, D, F), inward, xavier(D, F, gain), stack=stack, dtype=dtype)
        self.up = param(rngs, (E, D, F), inward, xavier(D, F, gain), stack=stack, dtype=dtype)
        self.down = param(rngs, (E, F, D), outward, xavier(F, D, gain), stack=stack, dtype=dtype)
        self.config, self.compute, self.rules = config, compute, rules

    @jax.named_scope("experts")
    def __call__(self, x_BSD: jax.Array, tokens: Tokens) -> tuple[jax.Array, RouterStats]:
        """x (B, S, D) -> (y (B, S, D), router statistics over all tokens that are not padding)."""
        weights = (self.router, self.gate, self.up, self.down)
        return expert_layer(
            x_BSD,
            tokens.documents_BS,
            tuple(cast_and_gather(weight, x_BSD.dtype, self.rules) for weight in weights),
            config=self.config,
            compute=self.compute,
            rules=self.rules,
            layout=tokens.layout,
        )
