"""Compiles the TPU kernels of a decode step for TPUs that are not here, at the released model's sizes.

`python -m benchmarks.kernels decode_operations --compile-only-tpu`. As `tpu_compiles`; what is donated there is here:
states, rings, keys and values, which a step leaves in place, so that the temporary memory is that of a few rows.
"""

import functools

import jax
import jax.numpy as jnp

from benchmarks.kernels.tpu_compiles import MIB, compiled
from benchmarks.results import Report
from pallas_kernels.attention_step import attention_step
from pallas_kernels.expert_step import expert_step
from pallas_kernels.few_rows import columns, filled_up
from pallas_kernels.lightning_step import RING, lightning_fold, lightning_ring_step, lightning_step
from pallas_kernels.norm_step import Mixed, Norm, Router, norm_step
from pallas_kernels.projection_step import projection_parts, projection_step

NAME = "decode_operations"
ROWS = (1, 16, 128)
# Of the released model, of whose layers two stand for all, and 8 experts for the 32, of which a v5e has not room.
L, D, N, K, H, E, F, A = 2, 6144, 64, 8, 128, 8, 9216, 2
PLACES = {1: 131_072, 16: 8192, 128: 2048}  # of each row's keys
Array = jax.ShapeDtypeStruct
HALF, WIDE, WHOLE = jnp.bfloat16, jnp.float32, jnp.int32
LAYER, COUNT = Array((1,), WHOLE), Array((1,), WHOLE)


def _lightning(rows: int):
    states, slope, weight = Array((L, rows, N, H, H), WIDE), Array((L, N), WIDE), Array((L, N, H), HALF)
    return Array((filled_up(rows), 4 * N * H), HALF), states, slope, weight, Array((rows,), jnp.bool_)


def _projection(rows: int):
    matrices = [Array((L, D, width * H), HALF) for width in (3 * N, N)]
    return projection_step, (Array((filled_up(rows), D), HALF), matrices, LAYER), ()


def _parts(rows: int):
    return projection_parts, (Array((filled_up(rows), N * H), HALF), Array((L, N * H, D), HALF), LAYER), ()


def _step(rows: int):
    return lightning_step, (*_lightning(rows), LAYER), (1,)


def _ring(rows: int):
    projected, states, slope, weight, active = _lightning(rows)
    ring = Array((L, rows, N, RING, H), HALF)
    return lightning_ring_step, (projected, states, (ring, ring), slope, weight, (active, COUNT, LAYER)), (2,)


def _fold(rows: int):
    _, states, slope, _, _ = _lightning(rows)
    ring = Array((L, rows, N, RING, H), HALF)
    return lightning_fold, (states, (ring, ring), slope, Array((rows,), WHOLE)), (0,)


def _attention(rows: int):
    store = Array((L, rows, K, PLACES[rows], H), HALF)
    told = Array((rows,), WHOLE), Array((rows,), jnp.bool_), LAYER
    projected, angle = Array((filled_up(rows), (N + 2 * K) * H), HALF), Array((rows, H // 4), WIDE)
    return attention_step, (projected, angle, store, store, told), (2, 3)


def _experts(rows: int):
    choice, weight = (Array((A, columns(rows)), dtype) for dtype in (WHOLE, WIDE))
    matrices = tuple(Array((L, E, *shape), HALF) for shape in ((D, F), (D, F), (F, D)))
    step = functools.partial(expert_step, rows=rows)
    return step, (Array((filled_up(rows), D), HALF), choice, weight, matrices, LAYER), ()


def _norm(rows: int):
    R, stack = filled_up(rows), Array((L, D), HALF)

    def step(tokens, weight, matrix, active, layer, **named):
        x, parts, o = tokens
        norm, router = Norm(weight, layer, 1.0, 1.0, 1e-5), Router(matrix, layer, active, A)
        return norm_step(x, parts, norm, rows=rows, mixed=Mixed(o, 1e-6), router=router, **named)

    tokens = Array((R, D), HALF), Array((1, R, D), WIDE), Array((R, N * H), HALF)
    return step, (tokens, stack, Array((L, 32, D), HALF), Array((rows,), jnp.bool_), LAYER), ()


OPERATIONS = {
    "norm_step": _norm,
    "projection_step": _projection,
    "projection_parts": _parts,
    "lightning_step": _step,
    "lightning_ring_step": _ring,
    "lightning_fold": _fold,
    "attention_step": _attention,
    "expert_step": _experts,
}


def measure(report: Report, generations: list[str]) -> int:
    """Compiles each operation at each number of rows for each generation; 0 when everything compiled, 1 otherwise."""
    jax.config.update("jax_platforms", "cpu")
    failed = False
    for generation in generations:
        for name, case in OPERATIONS.items():
            for rows in ROWS:
                operation, arguments, donated = case(rows)
                function = functools.partial(operation, implementation="tpu")
                temporary, error = compiled(generation, function, arguments, donated)
                subject, value = f"{generation} {name}: {rows} rows", error or round(temporary / MIB, 1)
                report.add(subject, value, "" if error else "MiB", device=f"compiled for {generation}")
                print(f"{subject}: {error or f'{temporary / MIB:,.1f} MiB of temporaries'}", flush=True)
                failed |= error is not None
    return int(failed)
