"""Compiles the TPU kernels of lightning attention for TPUs that are not here: what the compiler says of each.

`python -m benchmarks.kernels lightning_attention --compile-only-tpu`. libtpu compiles without a TPU. What it cannot say
is a time: the table's is a roofline, from bytes and FLOPs counted on paper (`lightning_cost.py`) and the chip's data
sheet.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.kernels import lightning_cost as cost
from benchmarks.results import Report
from mm01_jax.plan import targets
from pallas_kernels.lightning_attention import ages, tiling, tpu_scan, tpu_step
from tests.kernels import compile_only

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel at one shape."""

    kernel: str  # "scan" (forward, and dq), "reverse scan" (dk and dv) or "step"
    shape: cost.Shape
    packed: bool = False
    chips: tuple[str, ...] = ("v5e", "v5p", "v6e")


_LONG = cost.Shape(1, 8192, 64, 128)
_SEQUENCES = [
    Row("", _LONG),
    Row("", _LONG, packed=True),
    Row("", dataclasses.replace(_LONG, S=32768)),
    Row("", dataclasses.replace(_LONG, H=64), packed=True),
    Row("", dataclasses.replace(_LONG, itemsize=4), packed=True),
    Row("", cost.Shape(1, 2**20, 24, 128), chips=("v5p",)),  # more than 2^31 elements, and too much for a smaller HBM
]
ROWS = [
    *(dataclasses.replace(row, kernel=kernel) for kernel in ("scan", "reverse scan") for row in _SEQUENCES),
    *(Row("step", cost.Shape(B, 1, 64, H)) for B, H in [(1, 128), (16, 128), (128, 128), (128, 64)]),
]


def measure(report: Report, generations: list[str], rows: list[Row] | None = None) -> int:
    """Compiles every row for every generation, and adds what comes out to the report as it comes.

    Returns 0 when everything compiled, 1 otherwise.
    """
    jax.config.update("jax_platforms", "cpu")
    failed = False
    for generation in generations:
        for row in rows or ROWS:
            if generation in row.chips:
                failed |= not _measure(report, generation, row)
    return int(failed)


def _measure(report: Report, generation: str, row: Row) -> bool:
    """Whether it compiled. A limit that is text is the compiler's complaint."""
    mesh = compile_only.mesh_of(generation)
    tiles = tiling.tiling(mesh.devices.flat[0].device_kind)
    shape, chip = row.shape, targets.CHIPS[generation]
    limit, error = _smallest_limit(mesh, row, tiles)
    num_bytes, flops = _counts(row, tiles)
    products = 6 if shape.itemsize == 4 else 1
    seconds = max(num_bytes / chip.hbm_speed, products * flops / chip.flops)
    dtype = "bfloat16" if shape.itemsize == 2 else "float32"
    sizes = f"B={shape.B} S={shape.S} N={shape.N} H={shape.H}"
    subject = f"{generation} {row.kernel} {sizes} {dtype} packed={'yes' if row.packed else 'no'}"
    add = functools.partial(report.add, device=f"compiled for {generation}")
    add(f"{subject}: VMEM counted", _vmem_bytes(row, tiles) / MIB, "MiB")
    add(f"{subject}: smallest limit", limit if error is None else error, "MiB" if error is None else "")
    add(f"{subject}: bytes", num_bytes / 1e9, "GB")
    add(f"{subject}: FLOPs", flops / 1e9, "GFLOP")
    add(f"{subject}: roofline", seconds * 1e3, "ms")
    print(f"{subject}: {f'compiles with {limit} MiB' if error is None else error}", flush=True)
    return error is None


def _smallest_limit(mesh: Mesh, row: Row, tiles) -> tuple[int, str | None]:
    """Least limit in MiB by bisection between 1 and 64, and the compiler's complaint where 64 is not enough."""
    error = compile_error(mesh, row, dataclasses.replace(tiles, vmem_limit_bytes=64 * MIB))
    low, high = 0, 64
    while error is None and high - low > 1:
        middle = (low + high) // 2
        fits = compile_error(mesh, row, dataclasses.replace(tiles, vmem_limit_bytes=middle * MIB)) is None
        low, high = (low, middle) if fits else (middle, high)
    return high, error


def compile_error(mesh: Mesh, row: Row, tiles) -> str | None:
    """None when the kernel compiles for the mesh's chip, else the first line of what the compiler said."""
    function, arguments = _kernel(row, tiles)
    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    donated = (4,) if row.kernel == "step" else ()
    try:
        with jax.set_mesh(mesh):
            jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _kernel(row: Row, tiles):
    shape, array = row.shape, jax.ShapeDtypeStruct
    B, S, N, H = shape.B, shape.S, shape.N, shape.H
    dtype = jnp.bfloat16 if shape.itemsize == 2 else jnp.float32
    slope, state = array((N,), jnp.float32), array((B, N, H, H), jnp.float32)
    if row.kernel == "step":
        token = array((B, N, H), dtype)
        return functools.partial(tpu_step.tiled_step, tiles=tiles), (
            token,
            token,
            token,
            slope,
            state,
            array((B,), jnp.bool_),
        )
    rows = array((B, ages.ROWS, S) if row.packed else (1, ages.ROWS, tiles.chunk), jnp.float32)
    kernel, inputs = (tpu_scan.scan, 3) if row.kernel == "scan" else (tpu_scan.reverse_scan, 4)
    return functools.partial(kernel, tiles=tiles), (slope, rows, [array((B, N, S, H), dtype)] * inputs, state)


def _vmem_bytes(row: Row, tiles) -> int:
    shape = row.shape
    if row.kernel == "step":
        return tiling.step_vmem_bytes(shape.H, shape.itemsize, tiles)
    block = tiling.block_tokens(shape.S, shape.H, shape.itemsize, tiles)
    tensors = 4 if row.kernel == "scan" else 6
    return tiling.vmem_bytes(tensors, block, shape.H, shape.itemsize, tiles, packed=row.packed)


def _counts(row: Row, tiles) -> tuple[int, int]:
    shape = row.shape
    if row.kernel == "step":
        return cost.step_bytes(shape), cost.step_flops(shape)
    forward = cost.streamed_bytes(shape, ("forward",)), cost.flops(shape, tiles.chunk, ("forward",))
    if row.kernel == "scan":
        return forward
    # The backward pass is one scan (dq) and one reverse scan.
    both = cost.streamed_bytes(shape, ("backward",)), cost.flops(shape, tiles.chunk, ("backward",))
    return both[0] - forward[0] + 2 * shape.state_bytes, both[1] - forward[1]
