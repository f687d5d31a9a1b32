"""Compiles every operation's TPU implementation, forward and with gradients, for TPUs that are not here.

`python -m benchmarks.kernels softmax_attention … --compile-only-tpu`. libtpu compiles without a TPU: that it does, and
the temporary memory the program then asks for, is all that it can say. Lightning attention's kernels have a table of
their own, with the memory inside a core (`tpu_table.py`).
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.kernels import cases
from benchmarks.results import Report
from pallas_kernels.expert_ffn import expert_ffn
from pallas_kernels.gated_norm import gated_norm
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.softmax_attention import softmax_attention
from tests.kernels import compile_only

MIB = 2**20
Array = jax.ShapeDtypeStruct


def _softmax(case: cases.Softmax):
    q, k = (Array((case.B, case.S, heads, case.H), jnp.bfloat16) for heads in (case.N, case.K))
    tags = (Array((case.B, case.S), jnp.int32),) * 2

    def attend(arrays, tags):
        return softmax_attention(*arrays, query_tags=tags, key_tags=tags, implementation="tpu")

    return attend, (q, k, k), tags


def _gated_norm(case: cases.Rows):
    rows, weight = Array((case.R, case.W), jnp.bfloat16), Array((case.W,), jnp.bfloat16)
    return lambda arrays, _: gated_norm(*arrays, 1e-6, implementation="tpu"), (rows, rows, weight), ()


def _grouped(case: cases.Grouped):
    x, weight = Array((case.R, case.D), jnp.bfloat16), Array((case.E, case.D, case.F), jnp.bfloat16)
    most = {"capacity": 2 * case.R // case.E, "multiple": case.multiple, "implementation": "tpu"}
    return lambda arrays, sizes: grouped_matmul(*arrays, sizes, **most), (x, weight), Array((case.E,), jnp.int32)


def _expert_ffn(case: cases.Grouped):
    E, D, F = case.E, case.D, case.F
    weights = tuple(Array(shape, jnp.bfloat16) for shape in ((E, D, F), (E, D, F), (E, F, D)))
    arrays = Array((case.R, D), jnp.bfloat16), weights, Array((case.R,), jnp.float32)
    most = {"capacity": 2 * case.R // E, "multiple": case.multiple, "implementation": "tpu"}

    def apply(arrays, sizes):
        x, weights, weight = arrays
        return expert_ffn(x, weights, sizes, weight, **most)

    return apply, arrays, Array((E,), jnp.int32)


OPERATIONS = {
    "softmax_attention": _softmax,
    "grouped_matmul": _grouped,
    "expert_ffn": _expert_ffn,
    "gated_norm": _gated_norm,
}


def measure(report: Report, operations: list[str], generations: list[str], shapes: list[str] | None) -> int:
    """Compiles each shape for each generation; 0 when everything compiled, 1 otherwise."""
    jax.config.update("jax_platforms", "cpu")
    failed = False
    for generation in generations:
        for operation in operations:
            for case in cases.select(operation, shapes):
                function, arrays, others = OPERATIONS[operation](case)
                subject = f"{generation} {operation} {case.sizes}"
                add = functools.partial(report.add, device=f"compiled for {generation}")
                for quantity, run in (("forward", function), ("forward+backward", _with_gradients(function))):
                    temporary, error = compiled(generation, run, (arrays, others))
                    add(f"{subject}: {quantity}", error or round(temporary / MIB, 1), "" if error else "MiB")
                    print(f"{subject}: {quantity}: {error or f'{temporary / MIB:,.1f} MiB of temporaries'}", flush=True)
                    failed |= error is not None
    return int(failed)


def compiled(generation: str, run, arguments, donated: tuple[int, ...] = ()) -> tuple[int, str | None]:
    """(bytes of temporaries, None), or the first line of the compiler's complaint."""
    mesh = compile_only.mesh_of(generation)
    where = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(lambda x: Array(x.shape, x.dtype, sharding=where), arguments)
    try:
        with jax.set_mesh(mesh):
            memory = jax.jit(run, donate_argnums=donated).lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        return 0, str(error).splitlines()[0]
    return memory.temp_size_in_bytes, None


def _with_gradients(function):
    def both(arrays, others):
        out, pull = jax.vjp(lambda arrays: function(arrays, others), arrays)
        return out, pull(jnp.ones_like(out))

    return both
