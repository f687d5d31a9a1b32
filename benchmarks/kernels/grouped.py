"""The grouped matmul under the bench, beside plain XLA.

Padded XLA multiplies buffers of twice the balanced load and moves every row into them and back.
"""

import functools

import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import dense
from benchmarks.kernels.cases import Grouped
from benchmarks.kernels.measured import Measured
from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.grouped_matmul.api import OPERATION

BOTH = 3.0  # times the FLOPs of the forward pass


def measure(case: Grouped, found: Measured, _copy, implementation: str | None, with_peers: bool) -> None:
    """Fills in `found`: parity, and times where it holds. No floor: the products, not the bytes, set the time."""
    R, E, D, F = case.R, case.E, case.D, case.F
    x, w, d = dense.normal((R, D), (E, D, F), (R, F))
    rng = np.random.default_rng(0)
    sizes = jnp.asarray(rng.multinomial(R // case.multiple, np.full(E, 1 / E)) * case.multiple, jnp.int32)
    most = {"capacity": 2 * R // E, "multiple": case.multiple}
    w = w / np.sqrt(D).astype(w.dtype)
    found.implementation = dispatch.choose(OPERATION, implementation, x, w, sizes, *most.values())

    def multiply(implementation, x, w):
        return grouped_matmul(x, w, sizes, implementation=implementation, **most)

    kinds = {"ours": functools.partial(multiply, found.implementation), "xla": functools.partial(multiply, "xla")}
    dense.refuse(found, ("xla",), with_peers)
    flops = 2 * R * D * F
    dense.measure(found, kinds, (x, w), d, ("out", "dx", "dw"), flops=(flops, BOTH * flops))
