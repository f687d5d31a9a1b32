"""Grouped-query softmax attention with partial RoPE (spec A.5): every 8th layer of the released model."""

import jax
from flax import nnx

from mm01_jax.config import ModelConfig, Rules
from mm01_jax.model.cache import KeysValues
from mm01_jax.model.layers import cast_and_gather, einsum, param, rope, xavier
from mm01_jax.parallel.softmax.attention import cached_attention, self_attention


class Softmax(nnx.Module):
    """The softmax mixer; its cache holds rotated keys and values (B, T, K, H)."""

    def __init__(self, config: ModelConfig, rules: Rules, *, rngs: nnx.Rngs, stack: tuple[int, ...], gain: float):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        dtype = config.param_dtype
        heads, kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.query = param(rngs, (D, N, H), heads, xavier(D, N * H), stack=stack, dtype=dtype)
        self.key = param(rngs, (D, K, H), kv_heads, xavier(D, K * H), stack=stack, dtype=dtype)
        self.value = param(rngs, (D, K, H), kv_heads, xavier(D, K * H, gain), stack=stack, dtype=dtype)
        out_init = xavier(N * H, D, gain)
        self.out = param(rngs, (N, H, D), ("heads", "head_dim", "embed"), out_init, stack=stack, dtype=dtype)
        self.config, self.rules = config, rules

    def __call__(
        self, x_BSD: jax.Array, positions_BS: jax.Array, segments_BS: jax.Array, cache: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        """x (B, S, D) normed layer input -> (out (B, S, D), the cache with this call's keys and values written)."""
        config, dtype = self.config, x_BSD.dtype
        query = einsum("bsd,dnh->bsnh", x_BSD, cast_and_gather(self.query, dtype, self.rules))
        key = einsum("bsd,dkh->bskh", x_BSD, cast_and_gather(self.key, dtype, self.rules))
        value = einsum("bsd,dkh->bskh", x_BSD, cast_and_gather(self.value, dtype, self.rules))
        query = rope(query, positions_BS, config.rotary_dim, config.rope_theta)
        key = rope(key, positions_BS, config.rotary_dim, config.rope_theta)
        tags = (positions_BS, segments_BS)
        if cache is None:
            out = self_attention(query, key, value, tags, config=config, rules=self.rules)
        else:
            cache = cache.write(key, value, *tags)
            key, value, *key_tags = cache.read(*tags)
            out = cached_attention(query, key, value, query_tags=tags, key_tags=tuple(key_tags), rules=self.rules)
        return einsum("bsnh,nhd->bsd", out, cast_and_gather(self.out, dtype, self.rules)), cache
