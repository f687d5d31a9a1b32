"""Mixture of experts (paper 2.1, Eq. 1; docs/model.md A.6): router, expert weights and what the balance loss needs.

p = softmax_fp32(W_r x)     w = top-k(p) / sum(top-k(p))     y = sum_k w_k W_down_k( silu(W_gate_k x) * W_up_k x )
"""

import jax
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.model.layers import Int8Weight, matrix, param, stored_apart, xavier
from mm01_jax.model.tokens import Tokens
from mm01_jax.model.weights import for_product
from mm01_jax.parallel.experts.layer import RouterStats, expert_layer


class Experts(nnx.Module):
    """Router and E SwiGLU experts of width F. tells: every token's choice is among the statistics (`views.routed`)."""

    tells = False

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
        D, E, F = config.embed_dim, config.num_experts, config.expert_dim
        self.router = param(rngs, (D, E), ("embed", None), xavier(D, E), stack=stack, compute=compute)
        inward, outward = ("expert", "embed", "ffn"), ("expert", "ffn", "embed")
        told = {"summed": (-2,), "quantize": compute.quantize != "none", "stack": stack, "compute": compute}
        self.gate = matrix(rngs, (E, D, F), inward, xavier(D, F, gain), **told)
        self.up = matrix(rngs, (E, D, F), inward, xavier(D, F, gain), **told)
        self.down = matrix(rngs, (E, F, D), outward, xavier(F, D, gain), **told)
        self.config, self.compute, self.rules = config, compute, rules

    def at(self, period: jax.Array, layer: jax.Array) -> "Experts":
        """The experts of one layer of the stack, whose matrices stay in it where they are used as they are stored: a
        kernel reads them there, and what is sliced out would be copied for it.
        """
        one = jax.tree.map(lambda weight: weight[period, layer], self)
        as_stored = isinstance(self.gate, Int8Weight) or self.gate.dtype == self.compute.dtype
        if as_stored and not stored_apart(self.rules):
            for name in ("gate", "up", "down"):
                setattr(one, name, getattr(self, name))
            one.place = nnx.data((period, layer))
        return one

    @jax.named_scope("experts")
    def __call__(self, x_BSD: jax.Array, tokens: Tokens) -> tuple[jax.Array, RouterStats]:
        """x (B, S, D) -> (y (B, S, D), router statistics over all tokens that are not padding)."""
        weights, place = (self.router, self.gate, self.up, self.down), getattr(self, "place", None)
        return expert_layer(
            x_BSD,
            tokens.documents_BS,
            tuple(for_product(weight, x_BSD.dtype, self.rules) for weight in weights),
            place,
            config=self.config,
            compute=self.compute,
            rules=sharding.of_stream(self.rules),
            layout="contiguous" if self.rules.act_seq else tokens.layout,
            tells=self.tells,
        )
