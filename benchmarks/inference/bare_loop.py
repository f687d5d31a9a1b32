"""Decode steps in a loop on the device and nothing around them: what an answer takes at all.

The engine adds what every request may ask for (`mm01_jax/inference/engine_decode.py`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mm01_jax import sharding
from mm01_jax.inference.sampling import History, Rows, sample, with_token
from mm01_jax.inference.steps import decode_step
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decode_step import begin_rings, end_rings

BLOCK = 16  # tokens decoded on the device between two looks by the host
NOT_FINITE = -2  # the token where logits are no numbers; no id, and not what `stop_K` has for none


class Answers(NamedTuple):
    """Where decoding is.

    cache: without token_B (B,), the last token of each row. done_B: rows that have stopped. number_B: int32, new tokens
    that each row has, token_B among them. history: what the penalties count, token_B among it.
    """

    cache: DecodeCache | None
    token_B: jax.Array
    done_B: jax.Array
    number_B: jax.Array
    history: History


class Draw(NamedTuple):
    """What tokens are drawn with, beside their logits.

    rows: None where all `are_plain`. allowed_V: ids that may be chosen. stop_K: ids that end a row, -1 for none.
    """

    rows: Rows | None
    allowed_V: jax.Array
    stop_K: jax.Array


@functools.partial(jax.jit, static_argnames="count", donate_argnums=1)
def loop(model, answers: Answers, draw: Draw, *, count: int) -> tuple[jax.Array, jax.Array, Answers]:
    """Decodes `count` tokens a row: (tokens (B, count), its last where a row had stopped; done_B; the answers)."""

    before = answers.cache
    begun = answers._replace(cache=begin_rings(model, before, count))

    def step(answers: Answers, _):
        logits, cache = decode_step(model, answers.cache, answers.token_B, ~answers.done_B)
        answers = _taken(answers._replace(cache=cache), logits, draw)
        return answers, answers.token_B

    answers, tokens = jax.lax.scan(step, begun, length=count)
    cache, small = end_rings(model, answers.cache, before.lengths), _everywhere(answers[1:4])
    return _everywhere(tokens.T), small[1], Answers(cache, *small, _as_rows(answers.history, model.rules))


def _taken(answers: Answers, logits_BV: jax.Array, draw: Draw) -> Answers:
    """The answers with one more token in every row that has not stopped; one whose logits are not finite stops."""
    _, last, done, number, history = answers
    token = jnp.where(done, last, sample(logits_BV, draw.rows, history, number, draw.allowed_V))
    broken = ~done & ~jnp.isfinite(logits_BV).all(axis=1)
    token = jnp.where(broken, NOT_FINITE, token)
    if draw.rows is not None:  # else nobody asks what was counted
        history = with_token(history, token, ~done & ~broken)
    done |= broken | jnp.any(token[:, None] == draw.stop_K[None, :], axis=1)
    return Answers(answers.cache, token, done, number + 1, history)


def _as_rows(history: History, rules) -> History:
    return jax.tree.map(lambda x: sharding.constrain(x, rules, "batch", None), history)


def _everywhere[Tree](tree: Tree) -> Tree:
    """Arrays whole on every device, so that each process can read them."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, jax.P()), tree)
