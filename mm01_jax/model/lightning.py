"""Lightning attention as a layer (paper 2.2; docs/model.md A.4).

    [q|k|v] = silu(W_qkv x) per head      S_t = exp(-s) S_{t-1} + k_t v_t'      o_t = S_t' q_t
    y = W_out( sigmoid(W_gate x) * RMSNorm_{N*H}(o) )

No softmax, no denominator, no RoPE, no scale of q. The slope s is a float32 constant of the head and of the global
layer index. One norm spans all heads.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.model import drafts
from mm01_jax.model.cache import StackCache
from mm01_jax.model.layers import cast_and_gather, einsum, in_use, matrix, ones, param, rms_norm, xavier
from mm01_jax.model.tokens import Tokens
from mm01_jax.model.weights import for_product
from mm01_jax.parallel import lightning_prefill
from mm01_jax.parallel.lightning import gated_norm, lightning_attention, lightning_attention_step
from pallas_kernels.kept import MIXED, PROJECTED, keep


def slopes(num_heads: int, num_layers: int) -> np.ndarray:
    """Decay slopes (num_layers, num_heads) float32: ALiBi slopes times 1 - l/(L-1) + 1e-5 (model.md A.4).

    Head counts that are no power of two follow ALiBi: the slopes of the next lower power, then every second one of
    the next higher. Computed in float64 and rounded once.
    """

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (h + 1) / n) for h in range(n)]

    lower = 2 ** int(math.log2(num_heads))
    heads = geometric(lower) + geometric(2 * lower)[0::2][: num_heads - lower]
    factor = 1.0 - np.arange(num_layers) / max(num_layers - 1, 1) + 1e-5
    return (factor[:, None] * np.asarray(heads)[None, :]).astype(np.float32)


class Lightning(nnx.Module):
    """The lightning mixer; its cache is one state (B, N, H key, H value) float32 a layer."""

    position_axis = None

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
        D, N, H = config.embed_dim, config.num_heads, config.head_dim
        qkv_init = xavier(D, N * H, (1.0, 1.0, gain), gain_axis=-2)
        told = {"quantize": compute.quantize == "int8_attention", "stack": stack, "compute": compute}
        inward, outward = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")
        self.qkv = matrix(rngs, (D, N, 3, H), ("embed", "heads", None, "head_dim"), qkv_init, summed=(-4,), **told)
        gate_init = xavier(D, N * H)
        self.output_gate = matrix(rngs, (D, N, H), inward, gate_init, summed=(-3,), **told)
        self.norm = param(rngs, (N, H), ("heads", "head_dim"), ones, stack=stack, compute=compute)
        out_init = xavier(N * H, D, gain)
        self.out = matrix(rngs, (N, H, D), outward, out_init, summed=(-3, -2), **told)
        self.config, self.rules = config, rules

    def project(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q, k, v (B, S, N, H): SiLU on all three."""
        qkv = einsum("bsd,dnch->bsnch", x_BSD, for_product(self.qkv, x_BSD.dtype, self.rules))
        qkv = jax.nn.silu(keep(qkv, PROJECTED))
        return qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]

    def prefill(self, x_BSD: jax.Array, told) -> tuple[jax.Array, jax.Array] | None:
        """(out (B, S, N, H), state) of many tokens, where no pass over q, k, v is needed between product and attention.

        told: slopes, the state before, documents.
        """
        qkv = cast_and_gather(self.qkv, x_BSD.dtype, self.rules)
        if not lightning_prefill.pays(x_BSD, qkv, self.rules):
            return None
        return lightning_prefill.projected(x_BSD, qkv, *told, rules=self.rules)

    def finish(self, x_BSD: jax.Array, out_BSNH: jax.Array) -> jax.Array:
        """Norm over all heads, output gate, output projection."""
        dtype, eps = x_BSD.dtype, self.config.lightning_norm_eps
        gate = einsum("bsd,dnh->bsnh", x_BSD, for_product(self.output_gate, dtype, self.rules))
        gate = keep(gate, PROJECTED)
        weight = in_use(self.norm, dtype)
        with jax.named_scope("norms"):
            y = gated_norm(out_BSNH, gate, weight, eps, rules=self.rules)
        if y is None:
            y = jax.nn.sigmoid(gate) * rms_norm(out_BSNH, weight, eps, num_axes=2)
        return einsum("bsnh,nhd->bsd", y, for_product(self.out, dtype, self.rules))

    @jax.named_scope("lightning")
    def __call__(
        self, x_BSD: jax.Array, tokens: Tokens, cache: StackCache | None
    ) -> tuple[jax.Array, StackCache | None]:
        """x (B, S, D) normed layer input -> (out (B, S, D), the cache with the state after the last token)."""
        state = None if cache is None else cache.take()
        told = (tokens.slope_N, state, tokens.documents_BS)
        if isinstance(state, jax.Array) and (prefilled := self.prefill(x_BSD, told)):
            return self.finish(x_BSD, prefilled[0]), cache.put(prefilled[1])
        arguments = (*self.project(x_BSD), *told)
        if isinstance(state, drafts.Drafts):
            out, state = drafts.attend(state, arguments[:3], tokens.slope_N, tokens.documents_BS, self.rules)
        elif cache is not None and x_BSD.shape[1] == 1:
            out, state = lightning_attention_step(*arguments, rules=self.rules)
        else:
            out, state = lightning_attention(*arguments, rules=self.rules, layout=tokens.layout)
            out = keep(out, MIXED)
        return self.finish(x_BSD, out), None if cache is None else cache.put(state)

    @staticmethod
    def residual(config: ModelConfig) -> tuple[float, float]:
        return config.lightning_alpha, config.lightning_beta

    @staticmethod
    def flops(config: ModelConfig, num_keys: float) -> float:
        """Update the state and read it, however many keys came before."""
        del num_keys
        return 4.0 * config.num_heads * config.head_dim**2

    @staticmethod
    def kept(config: ModelConfig) -> int:
        """q, k, v, gate; the output."""
        return 5 * config.num_heads * config.head_dim

    @staticmethod
    def empty_cache(
        config: ModelConfig, compute: ComputeConfig, stack: tuple[int, int], batch_size: int, max_length: int
    ) -> jax.Array:
        """States (M, n, B, N, H, H) float32, whatever the length."""
        del compute, max_length
        N, H = config.num_heads, config.head_dim
        return jnp.zeros((*stack, batch_size, N, H, H), jnp.float32)

    @staticmethod
    def cache_spec(rules: Rules) -> jax.P:
        return sharding.spec(rules, None, None, "batch", "heads", None, None)
