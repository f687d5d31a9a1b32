"""Grouped matmul against NumPy float64, values and gradients.

Bound: a float32 sum of n products is off by at most n eps sum|products| (eps = 2^-24, first order), and rounding to
the output dtype by at most half a unit in its last place.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, use_abstract_mesh

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import gpu, gpu_tiles, grouped_matmul, reference, row_multiple, tpu

R, D, F = 50, 24, 40
SIZES = {"uneven": [7, 0, 20, 3, 11], "all rows": [10, 10, 10, 10, 10], "one group": [0, 0, 50, 0, 0], "none": [0] * 5}
HALF_ULP = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")


def _arrays(dtype, seed=0, R=R, D=D, F=F):
    rng = np.random.default_rng(seed)
    shapes = (R, D), (5, D, F), (R, F)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def _value_and_grads(f, x, weights, d_out):
    out, pull = jax.vjp(f, x, weights)
    return out, *pull(d_out)


def _assert_within_bound(got, exact, magnitude, terms, dtype):
    bound = terms * 2.0**-24 * magnitude + HALF_ULP[dtype] * np.abs(exact) * 1.01
    assert np.all(np.abs(np.asarray(got, np.float64) - exact) <= bound)


def _check(forward, dtype, sizes, **shape):
    x, weights, d_out = _arrays(dtype, **shape)
    sizes = np.array(sizes, np.int32)
    got = jax.jit(lambda *a: _value_and_grads(lambda x, w: forward(x, w, jnp.asarray(sizes)), *a))(x, weights, d_out)
    exact = reference.forward(x, weights, sizes), *reference.backward(x, weights, sizes, d_out)
    absolute = [np.abs(np.asarray(a, np.float64)) for a in (x, weights, d_out)]
    size = reference.forward(*absolute[:2], sizes), *reference.backward(*absolute[:2], sizes, absolute[2])
    for g, e, m, terms in zip(got, exact, size, (weights.shape[1], weights.shape[2], len(x)), strict=True):
        _assert_within_bound(g, e, m, terms, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_grouped_matmul_xla_equals_float64_with_gradients(dtype, sizes):
    _check(lambda x, w, g: grouped_matmul(x, w, g, capacity=50, implementation="xla"), dtype, sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_matmul_tpu_equals_float64_with_gradients(dtype):
    if dtype == "bfloat16":
        pytest.skip("XLA:CPU has no bfloat16 ragged_dot into float32; the arithmetic is XLA's on a TPU")
    _check(lambda x, w, g: tpu.forward(x, w, g, 50, 1), dtype, SIZES["uneven"])


@pytest.mark.parametrize(
    "sizes", [[128, 0, 256, 0, 128], pytest.param([0, 128, 0, 0, 0], marks=pytest.mark.slow), [0] * 5], ids=str
)
def test_grouped_matmul_gpu_interpreted_equals_float64_with_gradients(sizes, monkeypatch):
    monkeypatch.setattr(gpu_tiles, "MULTIPROCESSORS", 3)  # a program has several items
    with plgpu.force_gpu_interpret_mode():
        _check(lambda x, w, g: gpu.forward(x, w, g, 1, 128), "bfloat16", sizes, R=640, D=128, F=256)


def test_grouped_matmul_gpu_is_chosen_where_it_fits_and_lowers_with_its_gradients():
    rows = PartitionSpec("data")

    def loss(x, weights, sizes):
        assert row_multiple(5 * 16, x.dtype, weights.shape) == 128
        assert row_multiple(5 * 16 - 1, x.dtype, weights.shape) == 1, "decode"
        assert row_multiple(5 * 128, x.dtype, weights[:, :96].shape) == 1
        out = grouped_matmul(x, weights, sizes, capacity=256, multiple=128)
        return jax.lax.psum(out.astype(jnp.float32).sum(), "data")

    with use_abstract_mesh(AbstractMesh((2,), ("data",), (AxisType.Auto,), abstract_device=H200)):
        specs = rows, PartitionSpec(), PartitionSpec()
        mapped = jax.shard_map(jax.grad(loss, argnums=(0, 1)), in_specs=specs, out_specs=specs[:2])
        x, weights = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((512, 128), (5, 128, 256)))
        text = jax.jit(mapped).trace(x, weights, jax.ShapeDtypeStruct((5,), jnp.int32))
        assert text.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu") >= 2
    x, weights, _ = _arrays("bfloat16")
    assert row_multiple(5 * 128, x.dtype, weights.shape) == 1


def test_grouped_matmul_rows_beyond_capacity_are_zero_and_others_exact():
    x, weights, _ = _arrays("float32")
    sizes = np.array(SIZES["uneven"], np.int32)
    out = np.asarray(grouped_matmul(x, weights, jnp.asarray(sizes), capacity=9))
    exact = reference.forward(x, weights, sizes)
    beyond = np.zeros(R, bool)
    beyond[7 + 9 : 27] = beyond[30 + 9 : 41] = beyond[41:] = True
    assert np.all(out[beyond] == 0)
    np.testing.assert_allclose(out[~beyond], exact[~beyond], rtol=0, atol=D * 2.0**-24 * np.abs(exact).max() * 4)


def test_grouped_matmul_in_shard_map_sums_the_gradient_of_shared_weights():
    x, weights, d_out = _arrays("float32")
    sizes = np.array([[4, 1, 0, 9, 11], [5, 5, 5, 5, 5]], np.int32)
    mesh = jax.make_mesh((2,), ("expert",), axis_types=(AxisType.Auto,))
    rows, shared = PartitionSpec("expert"), PartitionSpec()

    def local(x, weights, sizes):
        return grouped_matmul(x, weights, sizes[0], capacity=25)

    f = jax.shard_map(local, mesh=mesh, in_specs=(rows, shared, rows), out_specs=rows)
    got = _value_and_grads(lambda x, w: f(x, w, jnp.asarray(sizes)), x, weights, d_out)

    def serial(x, w):
        halves = [
            grouped_matmul(h, w, jnp.asarray(s), capacity=25) for h, s in zip((x[:25], x[25:]), sizes, strict=True)
        ]
        return jnp.concatenate(halves)

    for g, e in zip(got, _value_and_grads(serial, x, weights, d_out), strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=R * 2.0**-24 * np.abs(e).max())


def test_grouped_matmul_for_a_tpu_lowers_to_the_ragged_product():
    mesh = AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=AbstractDevice("TPU v5", 1, "tpu"))
    x, weights, _ = _arrays("bfloat16")
    with use_abstract_mesh(mesh):
        text = str(jax.make_jaxpr(lambda *a: grouped_matmul(*a, capacity=50))(x, weights, jnp.zeros(5, jnp.int32)))
    assert "ragged_dot" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_EDF": np.zeros((5, D + 1, F), np.float32)}, r"weights must be \(E, D=24, F\) in float32"),
        ({"group_sizes_E": np.zeros(4, np.int32)}, r"group_sizes must be int32\[5\]"),
        ({"capacity": 0}, "capacity=0 must be at least 1"),
        ({"implementation": "xls"}, "did you mean 'xla'"),
        ({"implementation": "tpu"}, "not for a TPU"),
    ],
)
def test_grouped_matmul_wrong_argument_is_named(change, message):
    x, weights, _ = _arrays("float32")
    arguments = {"x_RD": x, "weights_EDF": weights, "group_sizes_E": jnp.zeros(5, jnp.int32), "capacity": 50} | change
    arguments = {name: jnp.asarray(a) if isinstance(a, np.ndarray) else a for name, a in arguments.items()}
    with pytest.raises((ValueError, dispatch.Unsupported), match=message):
        grouped_matmul(**arguments)
