"""Softmax attention under the bench, beside cuDNN and plain XLA.

TFLOP/s count the visible pairs alone: 2 products forward, 5 more backward.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import dense, peers, timing
from benchmarks.kernels.cases import Softmax
from benchmarks.kernels.measured import Measured, Time
from pallas_kernels import dispatch
from pallas_kernels.softmax_attention import softmax_attention
from pallas_kernels.softmax_attention.api import OPERATION

BOTH = 3.5  # times the FLOPs of the forward pass
LAYERS = 4


def measure(case: Softmax, found: Measured, _copy, implementation: str | None, with_peers: bool) -> None:
    """Fills in `found`: parity, and times where it holds. No floor: the products, not the bytes, set the time."""
    B, S, N, K, H = case.B, case.S, case.N, case.K, case.H
    q, d, k, v = dense.normal((B, S, N, H), (B, S, N, H), (B, S, K, H), (B, S, K, H))
    size = -(-S // case.documents)
    place = np.arange(S, dtype=np.int32)
    tags = tuple(jnp.broadcast_to(jnp.asarray(x), (B, S)) for x in (place % size, place // size))
    found.implementation = dispatch.choose(OPERATION, implementation, q, k, v)

    def attend(implementation, q, k, v):
        return softmax_attention(q, k, v, query_tags=tags, key_tags=tags, implementation=implementation)

    kinds = {"ours": functools.partial(attend, found.implementation)}
    dense.refuse(found, ("cudnn", "xla"), with_peers)
    if case.documents > 1:
        found.refused.setdefault("cudnn", "it takes no documents here")
    if "cudnn" not in found.refused:
        kinds["cudnn"] = peers.cudnn
    kinds["xla"] = functools.partial(attend, "xla")  # the oracle too, whether it is timed or not
    pairs = sum(n * (n + 1) / 2 for n in np.bincount(np.asarray(tags[1][0]))) * B * N
    names, flops = ("out", "dq", "dk", "dv"), 4 * H * pairs
    dense.measure(found, kinds, (q, k, v), d, names, flops=(flops, BOTH * flops))
    if case.documents > 1 and found.is_right:
        found.times += _of_a_step(kinds["ours"], (q, *(k, v) * LAYERS), d, flops)


def _of_a_step(attend, arguments: tuple, d_out, flops: float) -> list[Time]:
    """Times of one of LAYERS layers in a program, each with the output before as its queries: what a row's documents
    leave to do is found once for all of them, as in a training step.
    """

    def layers(q, *keys_values):
        for k, v in zip(keys_values[::2], keys_values[1::2], strict=True):
            q = attend(q, k, v)
        return q

    times = []
    for quantity, f, more, factor in (
        ("forward of a step's layer", layers, (), 1),
        ("forward+backward of a step's layer", functools.partial(dense.with_gradients, layers), (d_out,), BOTH),
    ):
        program = jax.jit(f)
        run = functools.partial(program, *arguments, *more)
        seconds = timing.median_seconds(run, jax.block_until_ready) / LAYERS
        times.append(Time(quantity, seconds * 1e3, tflops=factor * flops / seconds / 1e12))
    return times
