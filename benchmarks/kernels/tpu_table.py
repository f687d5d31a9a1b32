"""Compile the TPU kernels for TPUs that are not here and write what the compiler says as a table.

`python -m benchmarks.kernels.bench lightning_attention --compile-only-tpu`. libtpu's compiler needs no TPU. What it
cannot say is a time: the table's is a roofline, from bytes and FLOPs counted on paper (`cost.py`) and the chip's data
sheet.
"""

import dataclasses
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_kernels.lightning_attention import ages, cost, tiling, tpu_scan, tpu_step

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's topology name and data sheet: dense bfloat16 FLOP/s, HBM bytes/s."""

    topology: str
    flops: float
    bandwidth: float


CHIPS = {
    "v5e": Chip("v5e:2x2", 197e12, 819e9),
    "v5p": Chip("v5p:2x2x1", 459e12, 2765e9),
    "v6e": Chip("v6e:2x2", 918e12, 1640e9),
}


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


def write(path: str, generations: list[str], rows: list[Row] | None = None) -> int:
    """Compiles every row for every generation; prints the table as it grows and writes it to `path`.

    Returns 0 when everything compiled, 1 otherwise.
    """
    for name in generations:
        if name not in CHIPS:
            raise ValueError(f"no TPU generation {name!r}; allowed: {', '.join(CHIPS)}")
    jax.config.update("jax_platforms", "cpu")
    lines = _header()
    print("\n".join(lines), flush=True)
    failed = False
    for name in generations:
        for row in rows or ROWS:
            if name not in row.chips:
                continue
            line, ok = _line(name, row)
            failed |= not ok
            lines.append(line)
            print(line, flush=True)
            pathlib.Path(path).write_text("\n".join(lines) + "\n")
    return int(failed)


def _header() -> list[str]:
    columns = "| TPU | kernel | B, S, N, H | dtype | packed | VMEM counted (MiB) | smallest limit (MiB) |"
    columns += " GB | GFLOP | roofline (ms) |"
    return [
        "# TPU kernels of lightning attention, compiled without a TPU",
        "",
        f"`python -m benchmarks.kernels.bench lightning_attention --compile-only-tpu`, jax {jax.__version__}.",
        "",
        "The scan is the forward pass, and again the gradient of q; the reverse scan is the gradients of k and v.",
        "VMEM counted: from block and scratch shapes. Smallest limit: the least `vmem_limit_bytes` that compiles.",
        "Roofline: the larger of counted bytes over the data sheet's bandwidth and counted FLOPs over its peak",
        "in bfloat16 (a float32 product is six of them). It is arithmetic, not a measurement: nothing here was run.",
        "",
        columns,
        "|" + "---|" * (columns.count("|") - 1),
    ]


def _line(generation: str, row: Row) -> tuple[str, bool]:
    mesh = compile_only_mesh(generation)
    tiles = tiling.tiling(mesh.devices.flat[0].device_kind)
    shape = row.shape
    vmem = _vmem_bytes(row, tiles)
    limit, error = _smallest_limit(mesh, row, tiles)
    num_bytes, flops = _counts(row, tiles)
    chip, products = CHIPS[generation], 6 if shape.itemsize == 4 else 1
    seconds = max(num_bytes / chip.bandwidth, products * flops / chip.flops)
    cells = [
        generation,
        row.kernel,
        f"{shape.B}, {shape.S}, {shape.N}, {shape.H}",
        "bfloat16" if shape.itemsize == 2 else "float32",
        "yes" if row.packed else "no",
        f"{vmem / MIB:.2f}",
        str(limit) if error is None else error,
        f"{num_bytes / 1e9:.3f}",
        f"{flops / 1e9:.2f}",
        f"{seconds * 1e3:.4f}",
    ]
    return f"| {' | '.join(cells)} |", error is None


@functools.cache
def compile_only_mesh(generation: str) -> Mesh:
    """A mesh of one chip that is not here. libtpu must be told that there is none before it is loaded."""
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[generation].topology)
    return Mesh(np.array(topology.devices[:1]), ("chip",), axis_types=(AxisType.Auto,))


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
