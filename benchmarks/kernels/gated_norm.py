"""The gated norm under the bench, beside plain XLA. The bytes set the time: each tensor counts once."""

import functools

from benchmarks.kernels import dense
from benchmarks.kernels.cases import Rows
from benchmarks.kernels.measured import Measured
from pallas_kernels import dispatch
from pallas_kernels.gated_norm import gated_norm
from pallas_kernels.gated_norm.api import OPERATION

EPS = 1e-6
TENSORS = (3, 8)  # that forward reads and writes; and backward: x, gate, dy, dx, d gate


def measure(case: Rows, found: Measured, copy, implementation: str | None, with_peers: bool) -> None:
    """Fills in `found`: parity, and times where it holds."""
    x, gate, weight, dy = dense.normal((case.R, case.W), (case.R, case.W), (case.W,), (case.R, case.W))
    found.implementation = dispatch.choose(OPERATION, implementation, x, gate, weight)

    def apply(implementation, x, gate, weight):
        return gated_norm(x, gate, weight, EPS, implementation=implementation)

    kinds = {"ours": functools.partial(apply, found.implementation), "xla": functools.partial(apply, "xla")}
    dense.refuse(found, ("xla",), with_peers)
    floors_ms = tuple(tensors * x.nbytes / copy * 1e3 for tensors in TENSORS)
    dense.measure(found, kinds, (x, gate, weight), dy, ("y", "dx", "d gate", "d weight"), floors_ms=floors_ms)
