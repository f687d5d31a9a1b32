"""Experts' SwiGLU under the bench, beside plain XLA: all three products, the gate and the router's weight.

Padded XLA multiplies buffers of twice the balanced load and moves every row into them and back.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import dense
from benchmarks.kernels.cases import Grouped
from benchmarks.kernels.measured import Measured
from pallas_kernels import dispatch
from pallas_kernels.expert_ffn import expert_ffn
from pallas_kernels.expert_ffn.api import OPERATION

BOTH = 3.0  # times the FLOPs of the forward pass


def measure(case: Grouped, found: Measured, _copy, implementation: str | None, with_peers: bool) -> None:
    """Fills in `found`: parity, and times where it holds. No floor: the products, not the bytes, set the time."""
    R, E, D, F = case.R, case.E, case.D, case.F
    x, gate, up, down, dy = dense.normal((R, D), (E, D, F), (E, D, F), (E, F, D), (R, D))
    gate, up, down = (w / np.sqrt(w.shape[1]).astype(w.dtype) for w in (gate, up, down))
    weight = jax.random.uniform(jax.random.key(1, impl="rbg"), (R,), jnp.float32)
    rng = np.random.default_rng(0)
    sizes = jnp.asarray(rng.multinomial(R // case.multiple, np.full(E, 1 / E)) * case.multiple, jnp.int32)
    most = {"capacity": 2 * R // E, "multiple": case.multiple}
    found.implementation = dispatch.choose(
        OPERATION, implementation, x, (gate, up, down), sizes, weight, *most.values()
    )

    def apply(implementation, x, gate, up, down, weight):
        return expert_ffn(x, (gate, up, down), sizes, weight, implementation=implementation, **most)

    kinds = {"ours": functools.partial(apply, found.implementation), "xla": functools.partial(apply, "xla")}
    dense.refuse(found, ("xla",), with_peers)
    flops = 3 * 2 * R * D * F
    names = "y", "dx", "d gate", "d up", "d down", "d weight"
    dense.measure(found, kinds, (x, gate, up, down, weight), dy, names, flops=(flops, BOTH * flops))
