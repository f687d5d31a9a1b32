"""Several tokens of a row that may be taken back: decode's own step, on guesses of what comes.

In the stream each of them is a row of its own, (B * S, 1, D), S of them for each row of the cache: what is computed row
by row then has the shapes of decode. In a stream (B, S, D) it has not: with S = 3 XLA:CPU writes the loop over S out,
and the third token's norms differ in their last bits from the first's.

A lightning layer computes them one after another with decode's step, leaves its state as it was and keeps their keys
and values; when it is known how many stand, every state is advanced by those, with the same step. So it has the bits
that it has after single tokens, whatever was guessed. Softmax layers have nothing to take back: the slots of later
positions are hidden from every query, and written again before one sees them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mm01_jax import sharding
from mm01_jax.config import ModelConfig, Rules
from mm01_jax.parallel.lightning import lightning_attention_steps


class Drafts(NamedTuple):
    """What a stack of lightning layers has while guesses are tried: states (M, n, B, N, H, H) without them, keys and
    values (M, n, B, S, N, H) of them. A layer in hand has no (M, n)."""

    state: jax.Array
    keys: jax.Array
    values: jax.Array


def begin(state: jax.Array, width: int, dtype: jnp.dtype, rules: Rules) -> Drafts:
    """A stack that is told of `width` tokens next."""
    M, n, B, N, H, _ = state.shape
    none = jnp.zeros((M, n, B, width, N, H), dtype)
    none = sharding.constrain(none, rules, None, None, "batch", None, "heads", None)
    return Drafts(state, none, none)


def by_row[Tree](stream: Tree, num_rows: int) -> Tree:
    """Arrays (B * S, 1, ...) of the stream as (B, S, ...), B the cache's rows; without drafts as they are."""
    return jax.tree.map(lambda x: x.reshape(num_rows, -1, *x.shape[2:]), stream)


def attend(
    drafts: Drafts, qkv: tuple[jax.Array, ...], slope_N: jax.Array, documents_R1: jax.Array, rules: Rules
) -> tuple[jax.Array, Drafts]:
    """A layer's output (B * S, 1, N, H) for such q, k, v, and its drafts with their keys and values."""
    *qkv, documents_BS = by_row((*qkv, documents_R1), len(drafts.state))
    out, _ = lightning_attention_steps(*qkv, slope_N, drafts.state, documents_BS, rules=rules)
    drafts = drafts._replace(keys=qkv[1].astype(drafts.keys.dtype), values=qkv[2].astype(drafts.values.dtype))
    return out.reshape(-1, 1, *out.shape[2:]), drafts


def end(drafts: Drafts, slopes_MnN: jax.Array, count_B: jax.Array, config: ModelConfig, rules: Rules) -> jax.Array:
    """The stack's states after the first `count` tokens of each row."""
    S = drafts.keys.shape[3]
    documents_BS = jnp.where(jnp.arange(S, dtype=jnp.int32)[None, :] < count_B[:, None], 0, -1)
    n = drafts.keys.shape[1]

    def layer(number, state):
        at = number // n, number % n
        keys, values = drafts.keys[at], drafts.values[at]
        new = lightning_attention_steps(keys, keys, values, slopes_MnN[at], state[at], documents_BS, rules=rules)[1]
        return state.at[at].set(new)

    return jax.lax.fori_loop(0, config.num_periods * n, layer, drafts.state)
