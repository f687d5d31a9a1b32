"""Softmax attention under the bench, beside cuDNN, by jax and by torch, and plain XLA.

TFLOP/s count the visible pairs alone: 2 products forward, 5 more backward. cuDNN takes no documents here: where they
are equal it has a row for each instead.
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
    tags = tuple(map(jnp.asarray, tags_of(case)))
    found.implementation = dispatch.choose(OPERATION, implementation, q, k, v)

    def attend(implementation, tags, q, k, v):
        return softmax_attention(q, k, v, query_tags=tags, key_tags=tags, implementation=implementation)

    kinds = {"ours": functools.partial(attend, found.implementation)}
    dense.refuse(found, ("cudnn", "torch", "xla"), with_peers)
    if case.uneven or S % case.documents:
        found.refused |= dict.fromkeys(("cudnn", "torch"), "it takes no documents here, and these are not equal")

    def as_rows(x):  # a row for each document
        return x.reshape(B * case.documents, -1, *x.shape[2:])

    if "cudnn" not in found.refused:
        kinds["cudnn"] = lambda _tags, *arrays: peers.cudnn(*map(as_rows, arrays)).reshape(q.shape)
    kinds["xla"] = functools.partial(attend, "xla")  # the oracle too, whether it is timed or not
    pairs = sum(n * (n + 1) / 2 for row in np.asarray(tags[1]) for n in np.bincount(row)) * N
    names, flops = ("out", "dq", "dk", "dv"), 4 * H * pairs
    dense.measure(found, kinds, (q, k, v), d, names, given=(tags,), flops=(flops, BOTH * flops))
    if found.is_right and "torch" not in found.refused:
        _time_torch(found, jax.jit(kinds["ours"])(tags, q, k, v), [as_rows(x) for x in (q, k, v, d)])
    if case.documents > 1 and found.is_right:
        found.times += _of_a_step(kinds["ours"], tags, (q, *(k, v) * LAYERS), d, flops)


def tags_of(case: Softmax) -> tuple[np.ndarray, np.ndarray]:
    """(positions, documents), int32 (B, S); lengths of uneven documents are log-normal, others in every row."""
    B, S, documents = case.B, case.S, case.documents
    place = np.broadcast_to(np.arange(S), (B, S))
    ends = np.broadcast_to(np.arange(1, documents) * -(-S // documents), (B, documents - 1))
    if case.uneven:
        sizes = np.random.default_rng(0).lognormal(sigma=0.8, size=(B, documents)).cumsum(axis=1)
        ends = (sizes[:, :-1] / sizes[:, -1:] * S).astype(int)
    index = (place[:, :, None] >= ends[:, None]).sum(axis=2)
    starts = np.take_along_axis(np.pad(ends, ((0, 0), (1, 0))), index, axis=1)
    return (place - starts).astype(np.int32), index.astype(np.int32)


def _time_torch(found: Measured, ours, arrays: list) -> None:
    try:
        functions = peers.torch(*arrays)
        difference = jnp.max(jnp.abs(peers.array(functions["forward"]()).reshape(ours.shape) - ours))
        found.differences["torch"] = float(difference / jnp.max(jnp.abs(ours)))
        for what, f in functions.items():
            found.times.append(Time(what, 1e3 * timing.median_seconds(f, peers.wait), "torch"))
    except Exception as error:  # a peer's refusal is a result too
        found.refused["torch"] = f"{type(error).__name__}: {str(error)[:200]}"


def _of_a_step(attend, tags, arguments: tuple, d_out, flops: float) -> list[Time]:
    """Times of one of LAYERS layers in a program, each with the output before as its queries: what a row's documents
    leave to do is found once for all of them, as in a training step.
    """

    def layers(tags, q, *keys_values):
        for k, v in zip(keys_values[::2], keys_values[1::2], strict=True):
            q = attend(tags, q, k, v)
        return q

    times = []
    both = functools.partial(dense.with_gradients, layers)
    for quantity, f, operands, factor in (
        ("forward of a step's layer", layers, (tags, *arguments), 1),
        ("forward+backward of a step's layer", both, ((tags,), *arguments, d_out), BOTH),
    ):
        program = jax.jit(f)
        run = functools.partial(program, *operands)
        seconds = timing.median_seconds(run, jax.block_until_ready) / LAYERS
        times.append(Time(quantity, seconds * 1e3, tflops=factor * flops / seconds / 1e12))
    return times
