"""RMSNorm behind a sigmoid gate against NumPy float64, values and gradients.

Bound: error at most twice that of plain XLA at the same dtype; plain XLA's own, in float32, is a few roundings of each
step and those of a sum over a row, or over all rows.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, use_abstract_mesh

from pallas_kernels import dispatch
from pallas_kernels.gated_norm import api, gated_norm, gpu, reference, tpu
from tests.kernels import lightning_cases
from tests.slow import slow_but

EPS = 1e-6
H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
NAMES = ("y", "dx", "d gate", "d weight")


def _arrays(R, W, dtype):
    rng = np.random.default_rng(0)
    x, gate, dy = (jnp.asarray(rng.normal(size=(R, W)) * scale, dtype) for scale in (3.0, 2.0, 1.0))
    return x.at[1].set(0), gate, jnp.asarray(rng.normal(size=W), dtype), dy


def _passes(forward, x, gate, weight, dy):
    y, pull = jax.vjp(forward, x, gate, weight)
    return y, *jax.block_until_ready(pull(dy))


def _errors(found, x, gate, weight, dy):
    exact = reference.forward(x, gate, weight, EPS), *reference.backward(x, gate, weight, EPS, dy)
    return [np.abs(np.asarray(a, np.float64) - b).max() for a, b in zip(found, exact, strict=True)], exact


def _of(implementation):
    return lambda *arrays: gated_norm(*arrays, EPS, implementation=implementation)


def _assert_no_worse_than_xla(implementation, R, W, dtype):
    arrays = _arrays(R, W, dtype)
    allowed, _ = _errors(jax.jit(lambda *a: _passes(_of("xla"), *a))(*arrays), *arrays)
    found, _ = _errors(_passes(_of(implementation), *arrays), *arrays)
    for name, error, most in zip(NAMES, found, allowed, strict=True):
        assert error <= 2 * most, name


@pytest.mark.parametrize(("R", "W"), [(7, 48), (64, 256)])
def test_gated_norm_xla_equals_float64_with_gradients(R, W):
    x, gate, weight, dy = arrays = _arrays(R, W, "float32")
    errors, exact = _errors(jax.jit(lambda *a: _passes(_of("xla"), *a))(*arrays), *arrays)
    row = np.abs(np.asarray(x)).max(axis=1) > 0  # of a row of zeros the norm divides by sqrt(eps)
    for name, error, value in zip(NAMES, errors, exact, strict=True):
        terms = R if name == "d weight" else W
        assert error <= (terms + 32) * 2.0**-24 * np.abs(value).max(), (name, row.sum())


@pytest.mark.parametrize(("R", "W"), [(52, 256), (16, 1024), (8, 2048)])
def test_gated_norm_gpu_interpreted_is_no_worse_than_xla(R, W, monkeypatch):
    monkeypatch.setattr(gpu, "PROGRAMS", 3)  # a program has several steps, and not all as many
    mesh = AbstractMesh((1,), ("chip",), (AxisType.Auto,), abstract_device=H200)
    with use_abstract_mesh(mesh), plgpu.force_gpu_interpret_mode():
        _assert_no_worse_than_xla("gpu", R, W, jnp.bfloat16)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gated_norm_tpu_interpreted_is_no_worse_than_xla(dtype, monkeypatch):
    monkeypatch.setattr(tpu, "BLOCK_BYTES", 2**14)  # several blocks
    strict = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
    with pltpu.force_tpu_interpret_mode(strict), use_abstract_mesh(lightning_cases.tpu_mesh()):
        _assert_no_worse_than_xla("tpu", 64, 256, dtype)


_COMPILE = """
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from jax.sharding import NamedSharding, PartitionSpec
from tests.kernels.compile_only import mesh_of
from pallas_kernels.gated_norm import gated_norm
mesh = mesh_of({generation!r})
def of(*shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
for R, W, dtype in [(8192, 1024, "bfloat16"), (8192, 8192, "bfloat16"), (512, 8192, "float32"), (48, 256, "bfloat16")]:
    x, weight = of(R, W, dtype=dtype), of(W, dtype=dtype)
    def passes(x, gate, weight, dy):
        y, pull = jax.vjp(lambda *a: gated_norm(*a, 1e-6, implementation="tpu"), x, gate, weight)
        return y, pull(dy)
    with jax.set_mesh(mesh):
        jax.jit(passes).lower(x, x, weight, x).compile()
"""


@pytest.mark.parametrize("generation", slow_but(["v5e"], ["v5e", "v5p", "v6e"]))
def test_gated_norm_tpu_kernels_compile(generation):
    pytest.importorskip("libtpu")
    program = _COMPILE.format(generation=generation)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_gated_norm_keeps_what_is_not_finite_in_its_row():
    x, gate, weight, dy = _arrays(8, 64, "float32")
    clean = _passes(_of("xla"), x, gate, weight, dy)
    y, dx, d_gate, d_weight = _passes(_of("xla"), x.at[3, 5].set(jnp.nan), gate, weight, dy)
    others = np.arange(8) != 3
    for a, b in zip((y, dx, d_gate), clean, strict=False):
        assert np.isnan(a[3]).any()
        np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])
    assert np.isnan(d_weight).all()


def test_gated_norm_gpu_is_chosen_where_it_fits_and_lowers_in_shard_map():
    rows = PartitionSpec("data")

    def loss(x, gate, weight):
        y = gated_norm(x, gate, weight, EPS)
        return jax.lax.psum(y.astype(jnp.float32).sum(), "data")

    with use_abstract_mesh(AbstractMesh((2,), ("data",), (AxisType.Auto,), abstract_device=H200)):
        specs = rows, rows, PartitionSpec()
        gradients = jax.shard_map(jax.grad(loss, argnums=(0, 1, 2)), in_specs=specs, out_specs=specs)
        x, weight = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((64, 512), (512,)))
        text = jax.jit(gradients).trace(x, x, weight).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("stablehlo.custom_call @mosaic_gpu") == 1, "the loss needs no y"
        for R, W in ((66, 512), (64, 320), (64, 2176)):
            assert "rows must be a multiple" in gpu.unsupported(jax.ShapeDtypeStruct((R, W), jnp.bfloat16), None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gate_RW": np.zeros((4, 16), np.float32)},
            r"gate must be float32\[8, 64\] to go with x, got float32\[4, 16\]",
        ),
        ({"weight_W": np.zeros(63, np.float32)}, r"weight must be float32\[64\]"),
        ({"implementation": "xls"}, "did you mean 'xla'"),
        ({"implementation": "tpu"}, "not for a TPU"),
    ],
)
def test_gated_norm_wrong_argument_is_named(change, message):
    x, gate, weight, _ = _arrays(8, 64, "float32")
    arguments = {"x_RW": x, "gate_RW": gate, "weight_W": weight, "eps": EPS} | change
    arguments = {name: jnp.asarray(a) if isinstance(a, np.ndarray) else a for name, a in arguments.items()}
    with pytest.raises((ValueError, dispatch.Unsupported), match=message):
        gated_norm(**arguments)


def test_gated_norm_names_its_implementations():
    assert list(api.OPERATION.modules) == ["tpu", "gpu", "xla"]
