"""The two ends of the model on a mesh: embedding lookup and cross-entropy with the vocabulary over `tensor`.

Neither end ever holds (batch, sequence, vocabulary): the lookup masks ids outside its shard, the loss walks the
tokens in chunks. Where its gradient is wanted it is formed beside it, from the same logits, and scaled by what comes
back in the backward pass: three products a chunk, none of them twice.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules
from mm01_jax.parallel.stored import entering
from pallas_kernels import dispatch
from pallas_kernels.precision import matmul_precision
from pallas_kernels.varying import vary_over


def embed(tokens_BS: jax.Array, table_VD: jax.Array, dtype: jnp.dtype, *, rules: Rules) -> jax.Array:
    """Rows of the table: (B, S, D) in `dtype`. Ids are validated on the host; one outside gives zeros."""

    def local(tokens, part):
        table = whole(part)
        index, present = _local_index(tokens, table.shape[0], rules.vocab)
        rows = jnp.where(present[..., None], table[index].astype(dtype), jnp.zeros((), dtype))
        return lax.psum(rows, rules.vocab) if rules.vocab else rows

    batch, out = sharding.spec(rules, "batch", "seq"), sharding.spec(rules, "batch", "seq", None)
    table, spec, whole = entering(table_VD, sharding.spec(rules, "vocab", None))
    return jax.shard_map(local, in_specs=(batch, spec), out_specs=out)(tokens_BS, table)


@jax.named_scope("loss")
def cross_entropy(
    hidden_BSD: jax.Array,
    head_DV: jax.Array,
    targets_BS: jax.Array,
    weights_BS: jax.Array,
    total_weight: jax.Array | float = 1.0,
    *,
    chunk: int,
    rules: Rules,
) -> jax.Array:
    """Sum over tokens of weight * -log softmax(hidden head)[target] / total_weight, float32 scalar, equal everywhere.

    Args:
      total_weight: float32 scalar, which gets no gradient. With it the loss is a mean whose cotangent is 1, and the
        gradient is rounded to the model's dtype once.
      chunk: tokens of one device whose float32 logits exist at a time.
    """
    tokens = sharding.spec(rules, "batch", "seq")
    head, spec, whole = entering(head_DV, sharding.spec(rules, None, "vocab"))
    in_specs = (sharding.spec(rules, "batch", "seq", None), spec, tokens, tokens, jax.P())

    def local(hidden, part, *others):
        return _local_cross_entropy(hidden, whole(part), *others, chunk=chunk, rules=rules)

    total_weight = jnp.asarray(total_weight, weights_BS.dtype)
    return jax.shard_map(local, in_specs=in_specs, out_specs=jax.P())(
        hidden_BSD, head, targets_BS, weights_BS, total_weight
    )


def _local_index(ids: jax.Array, size: int, vocab_axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """(index into this shard of the vocabulary, whether the id lives here)."""
    start = lax.axis_index(vocab_axes) * size if vocab_axes else 0
    index = ids - start
    present = (index >= 0) & (index < size)
    return jnp.where(present, index, 0), present


def _local_cross_entropy(hidden, head_DV, targets, weights, total_weight, *, chunk: int, rules: Rules):
    count = hidden.shape[0] * hidden.shape[1]
    chunk = min(chunk, count)
    padded = -(-count // chunk) * chunk

    def split(x: jax.Array) -> jax.Array:
        flat = x.reshape(count, *x.shape[2:])
        flat = jnp.pad(flat, [(0, padded - count)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(padded // chunk, chunk, *flat.shape[1:])

    # Made to vary here: else every chunk would sum its gradient of the head over all chips.
    token_axes = (*rules.batch, *rules.seq)
    head_DV = vary_over(head_DV, token_axes)
    scale = vary_over(1.0 / total_weight, token_axes)
    tokens = (split(hidden), split(targets), split(weights))
    return lax.psum(_chunked_cross_entropy(rules.vocab, tokens, head_DV, scale), token_axes) / total_weight


# Its gradient by hand: that of the logits is one pass over them and leaves in the model's dtype, and the chunks'
# gradients of the head add up in float32.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_cross_entropy(vocab_axes, tokens, head_DV, scale):
    """Sum over G chunks of C tokens of weight * -log softmax(hidden head)[target].

    tokens: hidden (G, C, D), targets and weights (G, C). head_DV: in its gradient's dtype. scale: the cotangent that is
    expected, by which the gradients are scaled before they are rounded.
    """
    narrow_DV = head_DV.astype(tokens[0].dtype)
    return jnp.sum(lax.map(lambda chunk: _chunk_loss(vocab_axes, chunk, narrow_DV)[0], tokens))


def _chunk_loss(vocab_axes, chunk, head_DV):
    """(sum of weight * loss, loss (C,), its logits (C, V) and their logsumexp (C,)) of one chunk."""
    hidden_CD, target_C, weight_C = chunk
    logits = _einsum("cd,dv->cv", hidden_CD, head_DV)
    index, present = _local_index(target_C, logits.shape[-1], vocab_axes)
    picked = jnp.where(present, jnp.take_along_axis(logits, index[:, None], axis=-1)[:, 0], 0.0)
    peak, total = (_in_one_pass if dispatch.platform() == "gpu" else _in_two_passes)(logits)
    if vocab_axes:
        local, peak = peak, lax.pmax(peak, vocab_axes)
        total, picked = lax.psum((total * jnp.exp(local - peak), picked), vocab_axes)
    lse = peak + jnp.log(total)
    return jnp.sum(weight_C * (lse - picked)), lse - picked, logits, lse


def _in_two_passes(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(largest, sum of exp(logit - largest)) of each row (C, V)."""
    peak = jnp.max(logits, axis=-1)
    return peak, jnp.sum(jnp.exp(logits - peak[:, None]), axis=-1)


def _in_one_pass(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same by one reduction of pairs: logits are read once, where memory's rate is what a pass costs."""

    def join(left, right):
        (peak, total), (other_peak, other_total) = left, right
        behind = peak - other_peak
        shrink = jnp.exp(-jnp.abs(behind))  # one exponential a pair: the larger one's factor is 1
        joined = jnp.where(behind >= 0, total + other_total * shrink, total * shrink + other_total)
        return jnp.maximum(peak, other_peak), joined

    start = jnp.asarray(jnp.finfo(logits.dtype).min, logits.dtype), jnp.zeros((), logits.dtype)
    return tuple(lax.reduce((logits, jnp.ones_like(logits)), start, join, (logits.ndim - 1,)))


def _chunked_forward(vocab_axes, tokens, head_DV, scale):
    narrow_DV = head_DV.astype(tokens[0].dtype)

    def one_chunk(d_head, chunk):
        hidden_CD, target_C, weight_C = chunk
        loss, loss_C, logits, lse_C = _chunk_loss(vocab_axes, chunk, narrow_DV)
        index, present = _local_index(target_C, logits.shape[-1], vocab_axes)
        column = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        target = present[:, None] & (column == index[:, None])
        probability = jnp.exp(logits - lse_C[:, None])
        d_logits = (probability - target.astype(logits.dtype)) * (weight_C * scale)[:, None]
        d_logits = d_logits.astype(hidden_CD.dtype)
        d_hidden = _einsum("cv,dv->cd", d_logits, narrow_DV)
        if vocab_axes:
            d_hidden = lax.psum(d_hidden, vocab_axes)
        d_head = d_head + _einsum("cd,cv->dv", hidden_CD, d_logits)
        return d_head, (loss, loss_C, d_hidden.astype(hidden_CD.dtype))

    start = jnp.zeros_like(head_DV, np.promote_types(head_DV.dtype, np.float32))
    d_head, (losses, loss_GC, d_hidden) = lax.scan(one_chunk, start, tokens)
    return jnp.sum(losses), (d_hidden, d_head.astype(head_DV.dtype), loss_GC, scale)


def _chunked_backward(vocab_axes, residuals, d_total):
    del vocab_axes
    d_hidden, d_head, loss_GC, scale = residuals
    relative = d_total / scale  # 1 where the cotangent is the expected one
    d_hidden, d_head = ((relative * x.astype(relative.dtype)).astype(x.dtype) for x in (d_hidden, d_head))
    return (d_hidden, None, (d_total * loss_GC).astype(scale.dtype)), d_head, None


_chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)


@jax.named_scope("head")
def _einsum(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """float32 out of the model's dtype."""
    wide = np.promote_types(left.dtype, np.float32)
    return jnp.einsum(equation, left, right, precision=matmul_precision(left.dtype), preferred_element_type=wide)
