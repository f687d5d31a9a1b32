"""The two ends of the model on a mesh: embedding lookup and cross-entropy with the vocabulary over `tensor`.

Neither end ever holds (batch, sequence, vocabulary): the lookup masks ids outside its shard, the loss walks the
tokens in chunks and recomputes their logits in the backward pass.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules


def embed(tokens_BS: jax.Array, table_VD: jax.Array, *, rules: Rules) -> jax.Array:
    """Rows of the table: (B, S, D) in its dtype. Ids are validated on the host; one outside gives zeros."""

    def local(tokens, table):
        index, present = _local_index(tokens, table.shape[0], rules.vocab)
        rows = jnp.where(present[..., None], table[index], jnp.zeros((), table.dtype))
        return lax.psum(rows, rules.vocab) if rules.vocab else rows

    batch, table = sharding.spec(rules, "batch", "seq"), sharding.spec(rules, "vocab", None)
    return jax.shard_map(local, in_specs=(batch, table), out_specs=sharding.spec(rules, "batch", "seq", None))(
        tokens_BS, table_VD
    )


def cross_entropy(
    hidden_BSD: jax.Array,
    head_DV: jax.Array,
    targets_BS: jax.Array,
    weights_BS: jax.Array,
    *,
    chunk: int,
    rules: Rules,
) -> jax.Array:
    """Sum over tokens of weight * -log softmax(hidden head)[target], float32 scalar, equal on every device.

    Args:
      chunk: tokens of one device whose float32 logits exist at a time.
    """
    tokens = sharding.spec(rules, "batch", "seq")
    in_specs = (sharding.spec(rules, "batch", "seq", None), sharding.spec(rules, None, "vocab"), tokens, tokens)
    local = functools.partial(_local_cross_entropy, chunk=chunk, rules=rules)
    return jax.shard_map(local, in_specs=in_specs, out_specs=jax.P())(hidden_BSD, head_DV, targets_BS, weights_BS)


def _local_index(ids: jax.Array, size: int, vocab_axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """(index into this shard of the vocabulary, whether the id lives here)."""
    start = lax.axis_index(vocab_axes) * size if vocab_axes else 0
    index = ids - start
    present = (index >= 0) & (index < size)
    return jnp.where(present, index, 0), present


def _local_cross_entropy(hidden, head_DV, targets, weights, *, chunk: int, rules: Rules):
    count = hidden.shape[0] * hidden.shape[1]
    chunk = min(chunk, count)
    padded = -(-count // chunk) * chunk

    def split(x: jax.Array) -> jax.Array:
        flat = x.reshape(count, *x.shape[2:])
        flat = jnp.pad(flat, [(0, padded - count)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(padded // chunk, chunk, *flat.shape[1:])

    # Made to vary here and widened: else every chunk would sum its gradient of the head over all chips, and the chunks'
    # gradients would add up in bfloat16. XLA removes the casts there and back.
    token_axes = {*rules.batch, *rules.seq} - jax.typeof(head_DV).mat.varying
    if token_axes:
        head_DV = lax.pcast(head_DV, tuple(sorted(token_axes)), to="varying")
    wide_head_DV = head_DV.astype(np.promote_types(head_DV.dtype, np.float32))
    one = jax.checkpoint(functools.partial(_chunk_cross_entropy, wide_head_DV, rules.vocab))
    losses = lax.map(one, (split(hidden), split(targets), split(weights)))
    return lax.psum(jnp.sum(losses), (*rules.batch, *rules.seq))


def _chunk_cross_entropy(head_DV, vocab_axes, xs):
    hidden_CD, target_C, weight_C = xs
    wide = np.promote_types(hidden_CD.dtype, np.float32)
    precision = "highest" if hidden_CD.dtype == jnp.float32 else "default"
    head_DV = head_DV.astype(hidden_CD.dtype)
    logits = jnp.einsum("cd,dv->cv", hidden_CD, head_DV, precision=precision, preferred_element_type=wide)
    peak = lax.stop_gradient(jnp.max(logits, axis=-1))
    index, present = _local_index(target_C, logits.shape[-1], vocab_axes)
    picked = jnp.where(present, jnp.take_along_axis(logits, index[:, None], axis=-1)[:, 0], 0.0)
    if vocab_axes:
        peak = lax.pmax(peak, vocab_axes)
    total = jnp.sum(jnp.exp(logits - peak[:, None]), axis=-1)
    if vocab_axes:
        total, picked = lax.psum((total, picked), vocab_axes)
    return jnp.sum(weight_C * (peak + jnp.log(total) - picked))
