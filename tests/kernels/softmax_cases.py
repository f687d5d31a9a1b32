"""Cases of softmax attention and the bound that every implementation is held to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.softmax_attention import api, masking, reference, xla


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


def assert_no_worse_than_xla(implementation: str, name: str, dtype) -> None:
    """attend and attend_gradient: error against NumPy float64 at most twice that of plain XLA at the same dtype."""
    *shape, query_tags, key_tags = CASES[name]
    q, k, v, d_out = arrays(*shape, dtype=dtype, B=len(query_tags[0]))
    tags = query_tags, key_tags
    exact, exact_lse = reference.attend(q, k, v, *tags)
    exact = exact, *reference.attend_gradient(q, k, v, *tags, d_out)
    least = np.finfo(np.float32).min
    delta = (np.asarray(d_out, np.float64) * exact[0]).sum(-1)
    whole = d_out, *(jnp.asarray(x, jnp.float32) for x in (np.maximum(exact_lse, least), delta))
    plain = xla.attend(q, k, v, *tags, jnp.float32)[0], *xla.attend_gradient(q, k, v, *tags, whole, jnp.float32)
    attend, gradient = (functools.partial(f, implementation=implementation) for f in (api.attend, api.attend_gradient))
    # One pass after the other: an interpreter's callbacks must not starve each other of threads.
    out, lse = jax.block_until_ready(jax.jit(attend)(q, k, v, *tags))
    gradients = jax.block_until_ready(jax.jit(gradient)(q, k, v, *tags, whole))
    np.testing.assert_allclose(lse, np.maximum(exact_lse, least), rtol=1e-5, atol=1e-5)
    for ours, theirs, e in zip((out, *gradients), plain, exact, strict=True):
        error, allowed = (np.abs(np.asarray(x, np.float64) - e).max() for x in (ours, theirs))
        assert error <= 2 * allowed + 1e-30


def assert_rule_is_the_gradient(implementation: str, dtype) -> None:
    """`softmax_attention` is differentiable, in the dtype of its arguments, within twice XLA's error."""
    *shape, query_tags, key_tags = CASES["packed documents"]
    q, k, v, d_out = arrays(*shape, dtype=dtype)

    def results(name):
        def whole(q, k, v):
            return api.softmax_attention(q, k, v, query_tags=query_tags, key_tags=key_tags, implementation=name)

        out, pull = jax.vjp(whole, q, k, v)
        return out, *jax.block_until_ready(pull(d_out))

    exact = reference.attend(q, k, v, query_tags, key_tags)[0]
    exact = exact, *reference.attend_gradient(q, k, v, query_tags, key_tags, d_out)
    for ours, theirs, e in zip(results(implementation), results("xla"), exact, strict=True):
        assert ours.dtype == dtype
        error, allowed = (np.abs(np.asarray(x, np.float64) - e).max() for x in (ours, theirs))
        assert error <= 2 * allowed
