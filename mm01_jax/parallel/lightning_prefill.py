"""The inward half of a lightning layer in prefill on NVIDIA Hopper: product, SiLU and attention, no pass between them.

    [q|k|v] = silu(W_qkv x)      out, state = lightning(q, k, v)

SiLU is taken where the product is accumulated, and attention reads q, k, v where the product leaves them, side by side
a head; otherwise both together are a pass that reads and writes all three.
"""

import math

import jax

from mm01_jax import sharding
from mm01_jax.config import Rules
from mm01_jax.parallel.lightning import unvarying
from pallas_kernels import dispatch
from pallas_kernels.int8 import Int8
from pallas_kernels.lightning_attention import lightning_attention_joined
from pallas_kernels.silu_projection import silu_projection

LEAST_ROWS = 1024  # on a device; of fewer XLA's product, which may split its sum, is as good


def pays(x_BSD: jax.Array, qkv_DN3H: jax.Array | Int8, rules: Rules) -> bool:
    """Whether `projected` is for these: bfloat16 on Hopper, many rows, time uncut."""
    if dispatch.why_not_hopper() or isinstance(qkv_DN3H, Int8) or x_BSD.dtype != "bfloat16":
        return False
    sizes = jax.sharding.get_abstract_mesh().shape
    cut, rows = (math.prod(sizes[axis] for axis in axes) for axes in (rules.seq, rules.batch))
    return cut == 1 and x_BSD.shape[0] * x_BSD.shape[1] >= LEAST_ROWS * rows


def projected(
    x_BSD: jax.Array,
    qkv_DN3H: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array,
    documents_BS: jax.Array,
    *,
    rules: Rules,
) -> tuple[jax.Array, jax.Array]:
    """x (B, S, D), the matrix (D, N, 3, H), a state as of `parallel.lightning` -> (out (B, S, N, H), state)."""
    tokens = sharding.spec(rules, "batch", "seq", None)
    matrix = sharding.spec(rules, None, "heads", None, None)
    states = sharding.spec(rules, "batch", "heads", None, None)
    slopes, documents = sharding.spec(rules, "heads"), sharding.spec(rules, "batch", "seq")
    outs = sharding.spec(rules, "batch", "seq", "heads", None), states

    def local(x_BSD, qkv_DN3H, slope_N, state_BNHH, documents_BS):
        (B, S, D), shape = x_BSD.shape, qkv_DN3H.shape[1:]
        qkv = silu_projection(x_BSD.reshape(B * S, D), qkv_DN3H.reshape(D, -1)).reshape(B, S, *shape)
        out, state = lightning_attention_joined(qkv, slope_N, state_BNHH, segment_ids=documents_BS)
        return out, unvarying(state, rules.seq)

    mapped = jax.shard_map(local, in_specs=(tokens, matrix, slopes, states, documents), out_specs=outs)
    return mapped(x_BSD, qkv_DN3H, slope_N, state_BNHH, documents_BS)
