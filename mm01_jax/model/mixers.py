"""The table of mixers: what may stand in a period, and what every entry can do.

To add one: its module here (and its `shard_map` in `parallel/`, where it has a collective of its own), its name in
`config.schema.MixerKind`, its entry in MIXERS, and, for conversion, its row of `convert/table.MIXERS`.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.model import deterministic
from mm01_jax.model.cache import DecodeCache, StackCache
from mm01_jax.model.lightning import Lightning
from mm01_jax.model.softmax import Softmax
from mm01_jax.model.tokens import Tokens


class Mixer(Protocol):
    """What mixes tokens in a layer: an `nnx.Module` whose weights are stacked (`layers.param`)."""

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
        """gain: DeepNorm's initialisation gain of the matrices on the residual path (paper 4.2)."""

    def __call__(
        self, x_BSD: jax.Array, tokens: Tokens, cache: StackCache | None
    ) -> tuple[jax.Array, StackCache | None]:
        """x (B, S, D), the normed layer input -> (out (B, S, D), the cache with this call's tokens in it)."""

    @staticmethod
    def residual(config: ModelConfig) -> tuple[float, float]:
        """(alpha, beta) of h' = alpha * norm(h) + beta * mixer(norm(h))."""

    @staticmethod
    def flops(config: ModelConfig, num_keys: float) -> float:
        """Forward FLOPs of mixing one token that sees so many keys, projections aside."""

    @staticmethod
    def kept(config: ModelConfig) -> int:
        """Numbers in the compute dtype that a token's forward pass keeps by name (`pallas_kernels/kept.py`)."""

    @staticmethod
    def empty_cache(
        config: ModelConfig, compute: ComputeConfig, stack: tuple[int, int], batch_size: int, max_length: int
    ) -> Any:
        """The pytree that a stack (M, n) of layers remembers of no token: leaves (M, n, B, ...)."""

    @staticmethod
    def cache_spec(rules: Rules) -> Any:
        """The PartitionSpec of every leaf of `empty_cache`."""

    position_axis: int | None
    """The axis of `empty_cache`'s leaves that has a place for each position; None: they hold what is of all."""


MIXERS: dict[str, type[Mixer]] = {"lightning": Lightning, "softmax": Softmax}


def mixer(kind: str, config: ModelConfig) -> type[Mixer]:
    """The mixer of a kind in a model with this config."""
    return deterministic.BY_ROW[MIXERS[kind]] if isinstance(config, deterministic.ByRowConfig) else MIXERS[kind]


def empty_cache(
    config: ModelConfig, compute: ComputeConfig, rules: Rules, batch_size: int, max_length: int
) -> DecodeCache:
    """A cache of no token for `batch_size` rows of at most `max_length` tokens, sharded at birth."""
    stacks = tuple(
        mixer(kind, config).empty_cache(config, compute, (config.num_periods, count), batch_size, max_length)
        for kind, count in config.stacks
    )
    return constrain_cache(DecodeCache(stacks, jnp.zeros((batch_size,), jnp.int32)), config, rules)


def constrain_cache(cache: DecodeCache, config: ModelConfig, rules: Rules) -> DecodeCache:
    """States the sharding of a cache, so that what a step returns lies as what it was given."""
    return jax.tree.map(jax.lax.with_sharding_constraint, cache, cache_specs(config, rules))


def cache_specs(config: ModelConfig, rules: Rules) -> DecodeCache:
    """The PartitionSpec of every array of the cache: rows over the batch's axes, heads over theirs."""
    stacks = tuple(mixer(kind, config).cache_spec(rules) for kind, _ in config.stacks)
    return DecodeCache(stacks, sharding.spec(rules, "batch"))
