"""From logits to the next token: greedy, temperature, top-k, top-p."""

import dataclasses

import jax
import jax.numpy as jnp

_TINY = float(jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose. Temperature 0 is greedy; top_k 0 and top_p 1 keep every token.

    Raises:
      ValueError: a value out of range, named.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all tokens) or a positive count")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")


def sample(logits_BV: jax.Array, key: jax.Array, allowed_V: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token (B,) int32 of each row.

    Args:
      logits_BV: float32.
      allowed_V: bool; ids that no text has (rows of the table beyond the tokenizer) are never chosen. Their untrained
        logits can win otherwise, and decode to nothing (model.md A.7).
    """
    logits = jnp.where(allowed_V[None, :], logits_BV, -jnp.inf)
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Below the smallest float32 a temperature would be 0 on the device; the largest logit being 0, no quotient is +inf.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / max(sampling.temperature, _TINY)
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if sampling.top_p < 1.0:
        logits = jnp.where(_nucleus(logits, sampling.top_p), logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
    """True for the smallest set of most likely tokens whose probabilities sum to at least `top_p`."""
    ordered = jax.lax.top_k(logits_BV, logits_BV.shape[-1])[0]
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    lowest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return logits_BV >= lowest
