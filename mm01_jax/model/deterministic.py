"""A model whose answers have the bits of training's forward: a decode step computes one row of what training computes.

What training makes of a token depends on the shapes that it is computed in, hardly on who else is in them. So here:

  * the stream has columns enough, empty ones behind the token's: a product or a sum of few rows is done in another
    order (`least_rows`). Positions and documents are of the real columns alone, which come first;
  * lightning attention keeps the state at the last multiple of CHUNK and the keys and values since, and computes that
    chunk whole, as training's scan over chunks does; a state is written once a chunk;
  * softmax attention asks with a block of queries, a row of the batch at a time, over a cache at least as long as
    training's rows; both are multiples of CHUNK long (or of the same length: a row of 2,000 is summed otherwise).

A row of the cache is a row of training. A document is computed where it lies in it: the cache's `lengths` are places in
the row, `positions_BS` of the forward are in the document, and what lies before its first place adds exact zeros, as
other documents do in training. Experts must be dropless, and the sequence uncut.

The price of a decode step: `least_rows` rows, 128 for 32 experts, where there would be fewer, and in lightning
attention CHUNK rows a sequence instead of one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules
from mm01_jax.model.cache import StackCache
from mm01_jax.model.experts import Experts
from mm01_jax.model.lightning import Lightning
from mm01_jax.model.softmax import Softmax, read, write
from mm01_jax.model.tokens import Tokens
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.parallel.lightning import lightning_attention
from mm01_jax.parallel.softmax.attention import cached_attention

CHUNK = 128  # a multiple of the chunk of every implementation of lightning attention
# Measured with XLA on a CPU (jax 0.12): a row of a product has the same bits from so many rows on, whatever its widths,
# and a sum along rows from so many numbers in all of them on. (From 4,096 rows on a norm has others: a training step of
# so many tokens on a device is not met to the bit.)
ROWS, NUMBERS = 64, 4096


class ChunkState(NamedTuple):
    """What lightning layers remember, (M, n, B, ...): the state at the last multiple of CHUNK, (N, H, H) float32; keys
    and values since, (CHUNK, N, H) in the compute dtype.
    """

    state: jax.Array
    keys: jax.Array
    values: jax.Array


class LightningByChunk(Lightning):
    """Lightning attention by whole chunks; without a cache it is training's own."""

    def __call__(self, x_BSD, tokens: Tokens, cache: StackCache | None):
        if cache is None:
            return super().__call__(x_BSD, tokens, cache)
        with jax.named_scope("lightning"):
            S = tokens.positions_BS.shape[1]
            qkv = real(self.project(x_BSD), S)
            out, arrays = _by_chunk(qkv, tokens, cache.take(), self.rules)
            return self.finish(x_BSD, filled(out, x_BSD.shape[1])), cache.put(arrays)

    @staticmethod
    def empty_cache(
        config: ModelConfig, compute: ComputeConfig, stack: tuple[int, int], batch_size: int, max_length: int
    ) -> ChunkState:
        N, H = config.num_heads, config.head_dim
        recent = jnp.zeros((*stack, batch_size, CHUNK, N, H), compute.dtype)
        states = Lightning.empty_cache(config, compute, stack, batch_size, max_length)
        return ChunkState(states, recent, recent)

    @staticmethod
    def cache_spec(rules: Rules) -> ChunkState:
        recent = sharding.spec(rules, None, None, "batch", None, "heads", None)
        return ChunkState(Lightning.cache_spec(rules), recent, recent)


def _by_chunk(qkv, tokens: Tokens, arrays: ChunkState, rules: Rules) -> tuple[jax.Array, ChunkState]:
    """(out (B, S, N, H), what is remembered after these tokens): attention over all chunks that they lie in."""
    B, S = tokens.documents_BS.shape
    length = -(-(S + CHUNK - 1) // CHUNK) * CHUNK
    window_BW = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (B, length))
    place_B1 = tokens.start_B[:, None] + tokens.positions_BS[:, :1]  # of the first token here
    before_B1 = place_B1 % CHUNK  # places of its chunk before it
    end_B1 = before_B1 + jnp.sum(tokens.documents_BS >= 0, axis=1, keepdims=True, dtype=jnp.int32)
    inside_BW = (window_BW >= before_B1 - tokens.positions_BS[:, :1]) & (window_BW < end_B1)
    query, key, value = (
        _window(new, old, window_BW - before_B1, inside_BW)
        for new, old in zip(qkv, (None, arrays.keys, arrays.values), strict=True)
    )
    attend = functools.partial(lightning_attention, query, key, value, tokens.slope_N, arrays.state, rules=rules)
    out, state = attend(jnp.where(inside_BW, 0, -1))
    whole_B1 = end_B1 // CHUNK * CHUNK
    if length > CHUNK:  # the state at the end of a chunk inside
        state = attend(jnp.where(inside_BW & (window_BW < whole_B1), 0, -1))[1]
    state = jnp.where((whole_B1 > 0)[:, :, None, None], state, arrays.state)
    recent_BC = whole_B1 + jnp.arange(CHUNK, dtype=jnp.int32)[None]
    own_BS = before_B1 + jnp.arange(S, dtype=jnp.int32)[None]
    return _at(lax.optimization_barrier(out), own_BS), ChunkState(state, _at(key, recent_BC), _at(value, recent_BC))


def _window(new_BSNH: jax.Array, old_BCNH: jax.Array | None, own_BW: jax.Array, inside_BW: jax.Array) -> jax.Array:
    """(B, W, N, H): the old of a chunk, then the new from where `own` is 0 on; 0 where nothing is."""
    window = _at(new_BSNH, own_BW)
    if old_BCNH is not None:
        old = jnp.pad(old_BCNH, [(0, 0), (0, own_BW.shape[1] - CHUNK), (0, 0), (0, 0)])
        window = jnp.where((own_BW < 0)[:, :, None, None], old, window)
    return jnp.where(inside_BW[:, :, None, None], window, jnp.zeros_like(window))


def _at(x_BSNH: jax.Array, index_BI: jax.Array) -> jax.Array:
    """Rows of axis 1; 0 where the index is none of its."""
    S = x_BSNH.shape[1]
    taken = jnp.take_along_axis(x_BSNH, jnp.clip(index_BI, 0, S - 1)[:, :, None, None], axis=1)
    return jnp.where(((index_BI >= 0) & (index_BI < S))[:, :, None, None], taken, jnp.zeros_like(taken))


class SoftmaxByRow(Softmax):
    """Softmax attention with rows enough; without a cache it is training's own, and its cache is the usual one."""

    def __call__(self, x_BSD, tokens: Tokens, cache: StackCache | None):
        if cache is None:
            return super().__call__(x_BSD, tokens, cache)
        with jax.named_scope("softmax"):
            S, places = tokens.positions_BS.shape[1], tokens.start_B[:, None] + tokens.positions_BS
            qkv = self.project(x_BSD, filled(tokens.positions_BS, x_BSD.shape[1]))
            query, key, value = real(qkv, S)
            cache = write(cache, key, value, tokens._replace(positions_BS=places), self.rules)
            query, *tags = (filled(x, ROWS) for x in (query, tokens.positions_BS, tokens.documents_BS))
            out = real(_attend(cache, tokens.start_B, self.rules, query, tags), S)
            return self.finish(filled(out, x_BSD.shape[1])), cache


def _attend(cache: StackCache, start_B: jax.Array, rules: Rules, query_BSNH: jax.Array, query_tags) -> jax.Array:
    key, value, (slots_BT, _) = read(cache)
    positions_BT = slots_BT - start_B[:, None]
    key_tags = positions_BT, jnp.where(positions_BT >= 0, 0, -1)
    return cached_attention(
        query_BSNH, key, value, query_tags=tuple(query_tags), key_tags=key_tags, rules=rules, row_by_row=True
    )


class ExpertsByRow(Experts):
    """Experts of a stream with empty columns, which go to none."""

    def __call__(self, x_BSD: jax.Array, tokens: Tokens) -> tuple[jax.Array, RouterStats]:
        return super().__call__(x_BSD, tokens._replace(documents_BS=filled(tokens.documents_BS, x_BSD.shape[1])))


def least_rows(batch_size: int, config: ModelConfig, rules: Rules) -> int:
    """Columns of a stream (B, S, D) with which every device has rows enough for training's bits."""
    sizes = jax.sharding.get_abstract_mesh().shape
    narrowest = min(config.num_experts, config.embed_dim, config.num_heads * config.head_dim)
    rows = max(ROWS, -(-NUMBERS // narrowest)) * math.prod(sizes[axis] for axis in rules.batch)
    return -(-rows // batch_size)


def real[Tree](columns: Tree, S: int) -> Tree:
    """The first S columns of arrays (B, S, ...), the others computed all the same: a function of few numbers is another
    program, whose sines and sums have other last bits.
    """
    return jax.tree.map(lambda x: x[:, :S], lax.optimization_barrier(columns))


def filled(x_BS: jax.Array, least: int) -> jax.Array:
    """(B, S, ...) with at least so many columns: numbers with zeros, positions and documents with -1."""
    missing = [(0, 0), (0, max(0, least - x_BS.shape[1])), *[(0, 0)] * (x_BS.ndim - 2)]
    return jnp.pad(x_BS, missing, constant_values=-1 if jnp.issubdtype(x_BS.dtype, jnp.integer) else 0)


class ByRowConfig(ModelConfig):
    """The config of such a model: the same values, other mixers (`mixers.py`)."""


BY_ROW = {Lightning: LightningByChunk, Softmax: SoftmaxByRow, Experts: ExpertsByRow}
