"""The rows of the table of TPU kernels compile; without libtpu there is no compiler to ask."""

import subprocess
import sys

import pytest


def _compile(generation: str, rows: str) -> None:
    """In a process of its own: libtpu reads its settings once, and this process belongs to the CPU."""
    program = (
        "from benchmarks.kernels import tpu_table as t\n"
        "from tests.kernels.compile_only import mesh_of\n"
        "from pallas_kernels.lightning_attention import tiling\n"
        "import jax; jax.config.update('jax_platforms', 'cpu')\n"
        f"mesh = mesh_of({generation!r})\n"
        "tiles = tiling.tiling(mesh.devices.flat[0].device_kind)\n"
        f"errors = [t.compile_error(mesh, row, tiles) for row in {rows}]\n"
        "assert errors and not any(errors), errors"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_lightning_tpu_kernels_compile_for_v5e():
    pytest.importorskip("libtpu")
    _compile(
        "v5e", "[r for r in t.ROWS if r.shape.S in (8192, 1) and r.shape.B == 1 and r.shape.H == 128 and not r.packed]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v5e", "v5p", "v6e"])
def test_lightning_tpu_kernels_compile_for_every_generation(generation):
    pytest.importorskip("libtpu")
    _compile(generation, f"[r for r in t.ROWS if {generation!r} in r.chips]")


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["softmax_attention", "grouped_matmul", "expert_ffn", "gated_norm"])
def test_tpu_implementations_compile_with_gradients(operation):
    pytest.importorskip("libtpu")
    arguments = [operation, "--compile-only-tpu", "--generations=v5e", "--shapes=bench_1b"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("MiB of temporaries") == 2
