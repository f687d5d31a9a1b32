"""The gradients on Hopper with the logits' own in memory between the two passes: five products instead of seven.

It takes two bytes a pair of tokens and head, so it is made and used up a part of the rows and key heads at a time.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.softmax_attention import gpu_blocks as blocks
from pallas_kernels.softmax_attention import gpu_key_gradients, gpu_query_product
from pallas_kernels.softmax_attention.gpu_backward import Part
from pallas_kernels.softmax_attention.gpu_blocks import TILE
from pallas_kernels.softmax_attention.masking import work_of

MOST = 2**32  # bytes of the logits' gradient at a time
HEAD_DIM = 128  # with 64 a pair of tokens has as many bytes and half the arithmetic: 4 % slower, both ways, on an H200
FEWEST = 1.5  # items of a part for each multiprocessor: with fewer the longest one is what the others wait for


def pays(K: int, H: int) -> bool:
    """Whether it was timed with so many key heads, and was faster."""
    return K > 1 and H == HEAD_DIM


def parts_of(B: int, K: int, group: int, S: int, T: int) -> list[Part]:
    """All rows and key heads, of `group` query heads each, in parts of at most MOST bytes; none where a part that is
    not the whole would have too few items.
    """
    count = MOST // (2 * group * S * T)
    if count >= B * K:
        return [Part(0, B, 0, K)]
    rows = max(1, count // K)
    heads = max((n for n in range(1, K + 1) if K % n == 0 and n <= count), default=0)
    if not heads or rows * heads * (T // TILE) < FEWEST * blocks.MULTIPROCESSORS:
        return []
    return [Part(b, min(rows, B - b), k, heads) for b in range(0, B, rows) for k in range(0, K, heads)]


def gradients(parts: list[Part], arrays, tags, spans, out_dtype):
    """(dQ, dK, dV) as `gpu_key_gradients` and `gpu_query_gradient` make them.

    Args:
      arrays: query, key, value, d_out, lse, delta, as there. tags, spans: of queries, of keys.
    """
    found: dict[int, list] = {}
    for part in parts:
        gradients = _of_part(part, arrays, tags, spans, out_dtype)
        # The next part begins when this one's logits are used up.
        arrays, gradients = jax.lax.optimization_barrier((arrays, gradients))
        found.setdefault(part.row, []).append(gradients)
    rows = [[jnp.concatenate(x, axis=2) for x in zip(*row, strict=True)] for row in found.values()]
    return tuple(jnp.concatenate(x) for x in zip(*rows, strict=True))


def _of_part(part: Part, arrays, tags, spans, out_dtype):
    rows = slice(part.row, part.row + part.rows)
    of_queries, of_keys = (work_of(jax.tree.map(lambda x: x[rows], x)) for x in spans)
    dk, dv, d_logits = gpu_key_gradients.key_gradients(arrays, *tags, of_keys, out_dtype, part)
    return gpu_query_product.query_gradient(d_logits, arrays[1], of_queries, out_dtype, part), dk, dv
