"""Grouped-query softmax attention with partial RoPE (docs/model.md A.5): every 8th layer of the released model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.model import drafts
from mm01_jax.model.cache import StackCache
from mm01_jax.model.layers import einsum, matrix, rope, xavier
from mm01_jax.model.tokens import Tokens
from mm01_jax.model.weights import for_product
from mm01_jax.parallel.softmax.attention import cached_attention, self_attention
from mm01_jax.parallel.softmax.cached import chunk_over_cache
from pallas_kernels.kept import PROJECTED, keep


class KeysValues(NamedTuple):
    """Keys and values of a stack of softmax layers: (M, n, B, K, T, H) in the compute dtype, RoPE applied.

    T next to H: TPUs tile the last two dims, and with few heads a shard (T, K, H) was copied to another layout and back
    in every period.
    """

    keys: jax.Array
    values: jax.Array


class Softmax(nnx.Module):
    """The softmax mixer; its cache holds rotated keys and values."""

    position_axis = 4

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
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        heads, kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        told = {"quantize": compute.quantize == "int8_attention", "stack": stack, "compute": compute}
        self.query = matrix(rngs, (D, N, H), heads, xavier(D, N * H), summed=(-3,), **told)
        self.key = matrix(rngs, (D, K, H), kv_heads, xavier(D, K * H), summed=(-3,), **told)
        self.value = matrix(rngs, (D, K, H), kv_heads, xavier(D, K * H, gain), summed=(-3,), **told)
        out_init, out_axes = xavier(N * H, D, gain), ("heads", "head_dim", "embed")
        self.out = matrix(rngs, (N, H, D), out_axes, out_init, summed=(-3, -2), **told)
        self.config, self.compute, self.rules = config, compute, rules

    @jax.named_scope("softmax")
    def __call__(
        self, x_BSD: jax.Array, tokens: Tokens, cache: StackCache | None
    ) -> tuple[jax.Array, StackCache | None]:
        """x (B, S, D) normed layer input -> (out (B, S, D), the cache with this call's keys and values written)."""
        query, key, value = self.project(x_BSD, tokens.positions_BS)
        tags, rules = (tokens.positions_BS, tokens.documents_BS), self.rules
        if cache is None:
            out = self_attention(query, key, value, tags, compute=self.compute, rules=rules, layout=tokens.layout)
        else:
            num_rows = cache.arrays.keys.shape[2]  # fewer than the stream's where it has drafts
            key, value, *own_tags = drafts.by_row((key, value, *tags), num_rows)
            own = tokens._replace(positions_BS=own_tags[0], documents_BS=own_tags[1])
            cache = write(cache, key, value, own, rules)
            if x_BSD.shape[1] > 1:
                out = chunk_over_cache(query, *cache.arrays, (cache.period, cache.layer), tags, rules)
                return self.finish(out), cache
            key, value, key_tags = read(cache)
            out = cached_attention(query, key, value, query_tags=tags, key_tags=key_tags, rules=rules)
        return self.finish(out), cache

    def project(self, x_BSD: jax.Array, positions_BS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """query (B, S, N, H), key and value (B, S, K, H): the first two rotated."""
        config, dtype, rules = self.config, x_BSD.dtype, self.rules
        query = einsum("bsd,dnh->bsnh", x_BSD, for_product(self.query, dtype, rules))
        key = einsum("bsd,dkh->bskh", x_BSD, for_product(self.key, dtype, rules))
        value = einsum("bsd,dkh->bskh", x_BSD, for_product(self.value, dtype, rules))
        query, key, value = (keep(x, PROJECTED) for x in (query, key, value))
        query = rope(query, positions_BS, config.rotary_dim, config.rope_theta)
        return query, rope(key, positions_BS, config.rotary_dim, config.rope_theta), value

    def finish(self, out_BSNH: jax.Array) -> jax.Array:
        """The output projection."""
        return einsum("bsnh,nhd->bsd", out_BSNH, for_product(self.out, out_BSNH.dtype, self.rules))

    @staticmethod
    def residual(config: ModelConfig) -> tuple[float, float]:
        return config.softmax_alpha, config.softmax_beta

    @staticmethod
    def flops(config: ModelConfig, num_keys: float) -> float:
        return 4.0 * config.num_heads * config.head_dim * num_keys

    @staticmethod
    def kept(config: ModelConfig) -> int:
        """Query, key, value; the output. Its log-sum-exp is small."""
        return 2 * (config.num_heads + config.num_kv_heads) * config.head_dim

    @staticmethod
    def empty_cache(
        config: ModelConfig, compute: ComputeConfig, stack: tuple[int, int], batch_size: int, max_length: int
    ) -> KeysValues:
        shape = (*stack, batch_size, config.num_kv_heads, max_length, config.head_dim)
        return KeysValues(jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype))

    @staticmethod
    def cache_spec(rules: Rules) -> KeysValues:
        keys = sharding.spec(rules, None, None, "batch", "kv_heads", None, None)
        return KeysValues(keys, keys)


def write(cache: StackCache, key_BSKH: jax.Array, value_BSKH: jax.Array, tokens: Tokens, rules: Rules) -> StackCache:
    """Puts each row's tokens into the slots of their positions; padding is not written."""
    key_BSKH, value_BSKH = (
        sharding.constrain(x, rules, "batch", None, "kv_heads", None) for x in (key_BSKH, value_BSKH)
    )
    past_the_end = cache.arrays.keys.shape[4]  # dropped
    slots = jnp.where(tokens.documents_BS >= 0, tokens.positions_BS, past_the_end)
    rows = jnp.arange(slots.shape[0], dtype=slots.dtype)[:, None]

    def put(store: jax.Array, new: jax.Array) -> jax.Array:
        return store.at[cache.period, cache.layer, rows, :, slots].set(new.astype(store.dtype), mode="drop")

    return cache.replace(KeysValues(*map(put, cache.arrays, (key_BSKH, value_BSKH))))


def read(cache: StackCache) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """(key (B, T, K, H), value, (positions (B, T), documents (B, T))) of the layer in hand.

    Slots after a query's position may hold nothing; the causal mask hides them, so no length is needed.
    """
    key, value = (jnp.swapaxes(array, 1, 2) for array in cache.take())
    slots_BT = jnp.broadcast_to(jnp.arange(key.shape[1], dtype=jnp.int32)[None, :], key.shape[:2])
    return key, value, (slots_BT, jnp.zeros_like(slots_BT))
