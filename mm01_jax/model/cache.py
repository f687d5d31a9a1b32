"""What decoding remembers: a lightning state per head, and softmax keys and values; one pytree, allocated once.

The cache travels through the layer scan as part of its carry and is updated in place at (period, layer): nothing of
its size is ever copied when the caller donates it. A row's next token goes to slot `lengths[row]`; slot = position.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mm01_jax import sharding
from mm01_jax.config import ModelConfig, Rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeysValues:
    """Keys and values of every softmax layer of a stack, and which layer is in hand.

    keys, values: (M, n, B, K, T, H) in the compute dtype, RoPE applied. period, layer: int32 scalars.
    T next to H: TPUs tile the last two dims, and with few heads a shard (T, K, H) was copied to another layout and back
    in every period.
    """

    keys: jax.Array
    values: jax.Array
    period: jax.Array
    layer: jax.Array

    def write(
        self, key_BSKH: jax.Array, value_BSKH: jax.Array, positions_BS: jax.Array, segments_BS: jax.Array
    ) -> "KeysValues":
        """Puts each row's tokens into the slots of their positions; padding (segment < 0) is not written."""
        slots = jnp.where(segments_BS >= 0, positions_BS, self.keys.shape[4])  # one past the end: dropped
        rows = jnp.arange(slots.shape[0], dtype=slots.dtype)[:, None]

        def put(store: jax.Array, new: jax.Array) -> jax.Array:
            return store.at[self.period, self.layer, rows, :, slots].set(new.astype(store.dtype), mode="drop")

        return dataclasses.replace(self, keys=put(self.keys, key_BSKH), values=put(self.values, value_BSKH))

    def read(
        self, positions_BS: jax.Array, segments_BS: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(key (B, T, K, H), value, key positions (B, T), key segments (B, T)) of the layer in hand.

        Slots after a query's position may hold nothing; the causal mask hides them, so no length is needed.
        """
        del segments_BS
        batch, slots = self.keys.shape[2], self.keys.shape[4]
        slot_BT = jnp.broadcast_to(jnp.arange(slots, dtype=positions_BS.dtype)[None, :], (batch, slots))
        key, value = (jnp.swapaxes(store[self.period, self.layer], 1, 2) for store in (self.keys, self.values))
        return key, value, slot_BT, jnp.zeros_like(slot_BT)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeCache:
    """The whole cache.

    stacks: one entry per stack of the period: a state (M, n, B, N, H, H) float32 for lightning,
      a (keys, values) pair of (M, n, B, K, T, H) for softmax.
    lengths: (B,) int32, tokens seen by each row.
    """

    stacks: tuple
    lengths: jax.Array

    @classmethod
    def zeros(cls, config: ModelConfig, rules: Rules, batch_size: int, max_length: int) -> "DecodeCache":
        """An empty cache for `batch_size` rows of at most `max_length` tokens, sharded at birth."""
        stacks = []
        for kind, count in config.stacks:
            lead = (config.num_periods, count, batch_size)
            if kind == "lightning":
                stacks.append(jnp.zeros((*lead, config.num_heads, config.head_dim, config.head_dim), jnp.float32))
            else:
                shape = (*lead, config.num_kv_heads, max_length, config.head_dim)
                stacks.append((jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)))
        cache = cls(tuple(stacks), jnp.zeros((batch_size,), jnp.int32))
        return jax.tree.map(jax.lax.with_sharding_constraint, cache, cls.specs(config, rules))

    @classmethod
    def specs(cls, config: ModelConfig, rules: Rules) -> "DecodeCache":
        """The PartitionSpec of every array: rows over the batch's axes, heads over theirs."""
        state = sharding.spec(rules, None, None, "batch", "heads", None, None)
        keys = sharding.spec(rules, None, None, "batch", "kv_heads", None, None)
        stacks = tuple(state if kind == "lightning" else (keys, keys) for kind, _ in config.stacks)
        return cls(stacks, sharding.spec(rules, "batch"))
