"""Compiles experts whose matrices are int8 for TPUs that are not here.

`python -m benchmarks.kernels int8_experts --compile-only-tpu`. As `tpu_compiles`, forward alone, for int8 has no
gradient; bfloat16 beside it. Of few rows, as a step of decode has, no widened matrix is among the temporaries.
"""

import jax
import jax.numpy as jnp

from benchmarks.kernels import cases
from benchmarks.kernels.tpu_compiles import MIB, compiled
from benchmarks.results import Report
from pallas_kernels.expert_ffn import expert_ffn
from pallas_kernels.int8 import Int8

NAME = "int8_experts"
FEW = cases.Grouped("few", 128, 8, 6144, 9216, multiple=1)  # the released model's, of a step of 128 rows
Array = jax.ShapeDtypeStruct


def measure(report: Report, generations: list[str]) -> int:
    """Compiles each for each generation; 0 when everything compiled, 1 otherwise."""
    jax.config.update("jax_platforms", "cpu")
    failed = False
    for generation in generations:
        for case in (*cases.select("expert_ffn", None), FEW):
            for kind in ("bfloat16", "int8"):
                temporary, error = compiled(generation, *_experts(case, kind))
                subject = f"{generation} experts {case.sizes}"
                told = error or round(temporary / MIB, 1)
                report.add(f"{subject}: {kind}", told, "" if error else "MiB", device=f"compiled for {generation}")
                print(f"{subject}: {kind}: {error or f'{temporary / MIB:,.1f} MiB of temporaries'}", flush=True)
                failed |= error is not None
    return int(failed)


def _experts(case: cases.Grouped, kind: str):
    E, D, F = case.E, case.D, case.F
    capacity = case.R if case is FEW else 2 * case.R // E

    def weight(*shape):
        if kind == "bfloat16":
            return Array(shape, jnp.bfloat16)
        return Int8(Array(shape, jnp.int8), Array((shape[0], shape[2]), jnp.float32))

    def apply(x, weights, sizes, factors):
        most = {"capacity": capacity, "multiple": case.multiple, "implementation": "tpu"}
        return expert_ffn(x, weights, sizes, factors, **most)

    weights = weight(E, D, F), weight(E, D, F), weight(E, F, D)
    return apply, (Array((case.R, D), jnp.bfloat16), weights, Array((E,), jnp.int32), Array((case.R,), jnp.float32))
