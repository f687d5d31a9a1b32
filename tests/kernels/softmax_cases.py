"""Cases of softmax attention and the bound that every implementation is held to: twice plain XLA's error.

XLA's error is its largest over eight orders of its sums (queries, keys and head dim permuted). One order is one draw:
on a sum of 300 float32 products the eight lie up to a factor of two apart, and which of them is the luckiest depends
on the instructions of the CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.softmax_attention import api, masking, reference, softmax_attention, xla


def arrays(S, T, N, K, H, *, dtype, B=1):
    rng = np.random.default_rng(0)
    shapes = (B, S, N, H), (B, T, K, H), (B, T, K, H), (B, S, N, H)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def packed(S) -> masking.Tags:
    """Documents that begin in a tile, with padding in a tile and at the end."""
    cuts = np.array([0, 100, 130, 170])
    segments = np.searchsorted(cuts[1:], np.arange(S), side="right")
    positions = np.arange(S) - cuts[segments]
    segments[60:70] = segments[S - 9 :] = -1
    return jnp.asarray(positions, jnp.int32)[None], jnp.asarray(segments, jnp.int32)[None]


def one_document(start, length) -> masking.Tags:
    return jnp.arange(start, start + length, dtype=jnp.int32)[None], jnp.zeros((1, length), jnp.int32)


def both(*rows: masking.Tags) -> masking.Tags:
    return tuple(jnp.concatenate(parts) for parts in zip(*rows, strict=True))


CASES = {
    "packed documents": (256, 256, 2, 1, 64, packed(256), packed(256)),
    "a length that is no multiple": (150, 150, 1, 1, 128, packed(150), packed(150)),
    "a chunk of a prompt over a cache": (70, 300, 2, 2, 64, one_document(230, 70), one_document(0, 300)),
    # Two key heads of two query heads each; rows that differ in their documents; more keys than queries.
    "rows and grouped heads": (
        *(128, 256, 4, 2, 64),
        both(packed(128), one_document(9, 128)),
        both(packed(256), one_document(0, 256)),
    ),
    "keys that no query sees": (64, 128, 1, 1, 64, one_document(0, 64), one_document(64, 128)),
}


def errors_over_orders(passes, arguments, whole, exact) -> np.ndarray:
    """Largest errors of (out, dq, dk, dv) = passes(*arguments, whole): the farthest of eight orders of the sums.

    arguments: (q, k, v, query_tags, key_tags); whole: (d_out, further arrays by query); exact: float64 results.
    """
    q, k, v, query_tags, key_tags = arguments
    S, T, H = q.shape[1], k.shape[1], q.shape[3]
    orders = [tuple(np.arange(n) for n in (S, T, H))]
    orders += [tuple(np.random.default_rng(seed).permutation(n) for n in (S, T, H)) for seed in range(1, 8)]
    errors = []
    for queries, keys, dims in orders:
        tags = tuple(x[:, queries] for x in query_tags), tuple(x[:, keys] for x in key_tags)
        arrays = q[:, queries][..., dims], *(x[:, keys][..., dims] for x in (k, v))
        d_out, *rows = (x[:, queries] for x in whole)
        found = passes(*arrays, *tags, (d_out[..., dims], *rows))
        true = (x[:, order][..., dims] for x, order in zip(exact, (queries, queries, keys, keys), strict=True))
        errors.append([np.abs(np.asarray(x, np.float64) - e).max() for x, e in zip(found, true, strict=True)])
    return np.max(errors, axis=0)


@jax.jit
def xla_passes(q, k, v, query_tags, key_tags, whole):
    tags = query_tags, key_tags
    return xla.attend(q, k, v, *tags, jnp.float32)[0], *xla.attend_gradient(q, k, v, *tags, whole, jnp.float32)


def differentiated(implementation: str):
    """`softmax_attention` and its gradient of (q, k, v), as `errors_over_orders` takes them."""

    def passes(q, k, v, query_tags, key_tags, whole):
        tags = {"query_tags": query_tags, "key_tags": key_tags}
        out, pull = jax.vjp(lambda *qkv: softmax_attention(*qkv, **tags, implementation=implementation), q, k, v)
        return out, *jax.block_until_ready(pull(whole[0]))

    return passes


def gradient_operands(exact_out, exact_lse, d_out):
    """What `attend_gradient` takes besides the arguments of `attend`: d_out, and lse and delta to float32."""
    delta = (np.asarray(d_out, np.float64) * exact_out).sum(-1)
    lse = np.maximum(exact_lse, np.finfo(np.float32).min)
    return d_out, *(jnp.asarray(x, jnp.float32) for x in (lse, delta))


def assert_no_worse_than_xla(implementation: str, name: str, dtype) -> None:
    """attend and attend_gradient: error against NumPy float64 at most twice that of plain XLA at the same dtype."""
    *shape, query_tags, key_tags = CASES[name]
    q, k, v, d_out = arrays(*shape, dtype=dtype, B=len(query_tags[0]))
    tags = query_tags, key_tags
    exact, exact_lse = reference.attend(q, k, v, *tags)
    whole = gradient_operands(exact, exact_lse, d_out)
    exact = exact, *reference.attend_gradient(q, k, v, *tags, d_out)
    allowed = errors_over_orders(xla_passes, (q, k, v, *tags), whole, exact)
    attend, gradient = (functools.partial(f, implementation=implementation) for f in (api.attend, api.attend_gradient))
    # One pass after the other: an interpreter's callbacks must not starve each other of threads.
    out, lse = jax.block_until_ready(jax.jit(attend)(q, k, v, *tags))
    gradients = jax.block_until_ready(jax.jit(gradient)(q, k, v, *tags, whole))
    np.testing.assert_allclose(lse, np.maximum(exact_lse, np.finfo(np.float32).min), rtol=1e-5, atol=1e-5)
    for ours, e, most in zip((out, *gradients), exact, allowed, strict=True):
        assert np.abs(np.asarray(ours, np.float64) - e).max() <= 2 * most + 1e-30


def assert_rule_is_the_gradient(implementation: str, dtype) -> None:
    """`softmax_attention` is differentiable, in the dtype of its arguments, within twice XLA's error."""
    *shape, query_tags, key_tags = CASES["packed documents"]
    q, k, v, d_out = arrays(*shape, dtype=dtype)
    arguments = q, k, v, query_tags, key_tags
    exact = reference.attend(*arguments)[0], *reference.attend_gradient(*arguments, d_out)
    allowed = errors_over_orders(jax.jit(differentiated("xla")), arguments, (d_out,), exact)
    found = differentiated(implementation)(*arguments, (d_out,))
    for ours, e, most in zip(found, exact, allowed, strict=True):
        assert ours.dtype == dtype
        assert np.abs(np.asarray(ours, np.float64) - e).max() <= 2 * most
