"""An expert's SwiGLU against NumPy float64, values and gradients.

Bound of float32: each of the three products is a sum that is off by at most n eps sum|products| (eps = 2^-24, first
order), and a handful of roundings more; bfloat16: error at most twice that of plain XLA.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, use_abstract_mesh

from pallas_kernels import dispatch
from pallas_kernels.expert_ffn import expert_ffn, gpu, reference, tpu
from pallas_kernels.grouped_matmul import gpu_tiles

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
V5P = AbstractDevice("TPU v5", 1, "tpu")
NAMES = ("y", "dx", "d gate", "d up", "d down", "d weight")


def _arrays(dtype, R, D, F, E=3):
    """x, the matrices, each row's factor (some 0, one negative), the gradient of y."""
    rng = np.random.default_rng(0)
    shapes = (R, D), (E, D, F), (E, D, F), (E, F, D), (R, D)
    x, gate, up, down, dy = (jnp.asarray(rng.normal(size=shape) * shape[-2] ** -0.25, dtype) for shape in shapes)
    weight = np.where(np.arange(R) % 7 == 3, 0.0, rng.normal(size=R))
    return x, (gate, up, down), jnp.asarray(weight, jnp.float32), dy


def _value_and_grads(forward, x, weights, weight_R, dy):
    y, pull = jax.vjp(forward, x, weights, weight_R)
    dx, d_weights, d_weight_R = pull(dy)
    return y, dx, *d_weights, d_weight_R


def _exact(x, weights, sizes, weight_R, dy):
    dx, d_weights, d_weight_R = reference.backward(x, weights, sizes, weight_R, dy)
    return reference.forward(x, weights, sizes, weight_R), dx, *d_weights, d_weight_R


def _errors(found, exact):
    return [np.abs(np.asarray(a, np.float64) - b).max() for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("form", ["xla", "tpu"])
@pytest.mark.parametrize("sizes", [[7, 0, 20], [0, 50, 0], [0, 0, 0]], ids=["uneven", "one group", "none"])
def test_expert_ffn_equals_float64_with_gradients(form, sizes):
    R, D, F, sizes = 50, 24, 40, np.array(sizes, np.int32)
    x, weights, weight_R, dy = _arrays("float32", R, D, F)
    forward = {
        "xla": lambda x, w, f: expert_ffn(x, w, jnp.asarray(sizes), f, capacity=R, implementation="xla"),
        "tpu": lambda x, w, f: tpu.forward(x, w, jnp.asarray(sizes), f, R, 1),
    }[form]
    found = jax.jit(lambda *a: _value_and_grads(forward, *a))(x, weights, weight_R, dy)
    exact = _exact(x, weights, sizes, weight_R, dy)
    magnitude = _exact(jnp.abs(x), tuple(map(jnp.abs, weights)), sizes, jnp.abs(weight_R), jnp.abs(dy))
    for name, error, size in zip(NAMES, _errors(found, exact), magnitude, strict=True):
        assert error <= (2 * D + 2 * F + R + 20) * 2.0**-24 * np.abs(size).max(), name


@pytest.mark.parametrize(
    "sizes", [[128, 0, 256], pytest.param([0, 128, 0], marks=pytest.mark.slow), [0, 0, 0]], ids=str
)
def test_expert_ffn_gpu_interpreted_is_no_worse_than_xla(sizes, monkeypatch):
    monkeypatch.setattr(gpu_tiles, "MULTIPROCESSORS", 3)  # a program has several items
    arrays, sizes = _arrays("bfloat16", 512, 128, 256), np.array(sizes, np.int32)
    exact = _exact(*arrays[:2], sizes, *arrays[2:])

    def errors(forward):
        found = jax.jit(lambda *a: _value_and_grads(forward, *a))(*arrays)
        return _errors(jax.block_until_ready(found), exact)

    allowed = errors(lambda x, w, f: expert_ffn(x, w, jnp.asarray(sizes), f, capacity=512, implementation="xla"))
    with plgpu.force_gpu_interpret_mode():
        found = errors(lambda x, w, f: gpu.forward(x, w, jnp.asarray(sizes), f, 1, 128))
    for name, error, most in zip(NAMES, found, allowed, strict=True):
        assert error <= 2 * most, name


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's products are NumPy's
def test_expert_ffn_gpu_interpreted_without_factors_and_with_a_row_that_is_not_finite():
    x, weights, _, _ = _arrays("bfloat16", 256, 128, 128)
    x = x.at[5].set(jnp.nan).at[9].set(jnp.inf)
    sizes = jnp.asarray([128, 0, 128], jnp.int32)
    with plgpu.force_gpu_interpret_mode():
        y = np.asarray(jax.jit(gpu.forward, static_argnums=(4, 5))(x, weights, sizes, None, 1, 128), np.float64)
    bad = np.isin(np.arange(256), (5, 9))
    assert np.isnan(y[bad]).all()
    clean = jnp.where(jnp.asarray(bad)[:, None], 0, x)
    exact = reference.forward(clean, weights, sizes, np.ones(256))
    plain = expert_ffn(clean, weights, sizes, capacity=256, implementation="xla")
    assert np.abs(y - exact)[~bad].max() <= 2 * np.abs(np.asarray(plain, np.float64) - exact).max()


def test_expert_ffn_gpu_is_chosen_where_it_fits_and_lowers_with_its_gradients():
    rows = PartitionSpec("data")

    def loss(x, weights, weight, sizes):
        y = expert_ffn(x, weights, sizes, weight, capacity=256, multiple=128)
        return jax.lax.psum(y.astype(jnp.float32).sum(), "data")

    with use_abstract_mesh(AbstractMesh((2,), ("data",), (AxisType.Auto,), abstract_device=H200)):
        whole = PartitionSpec()
        gradients = jax.shard_map(
            jax.grad(loss, argnums=(0, 1, 2)), in_specs=(rows, whole, rows, whole), out_specs=(rows, whole, rows)
        )
        x, *weights = (
            jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((512, 128), *[(5, 128, 256)] * 2, (5, 256, 128))
        )
        others = (jax.ShapeDtypeStruct((n,), dtype) for n, dtype in ((512, jnp.float32), (5, jnp.int32)))
        text = jax.jit(gradients).trace(x, tuple(weights), *others).lower(lowering_platforms=("cuda",)).as_text()
    # Forward once, for what the gradient needs; the hidden rows' gradient, dx in one, and three outer products, two of
    # them of one shape, which is lowered once.
    assert text.count("call @outer") == 3
    assert text.count("stablehlo.custom_call @mosaic_gpu") == 5


def test_expert_ffn_in_shard_map_sums_the_gradient_of_shared_weights():
    R, sizes = 50, np.array([[4, 1, 20], [5, 5, 5]], np.int32)
    x, weights, weight_R, dy = _arrays("float32", R, 24, 40)
    mesh = jax.make_mesh((2,), ("expert",), axis_types=(AxisType.Auto,))
    rows, shared = PartitionSpec("expert"), PartitionSpec()

    def local(x, weights, sizes, weight_R):
        return expert_ffn(x, weights, sizes[0], weight_R, capacity=25)

    f = jax.shard_map(local, mesh=mesh, in_specs=(rows, shared, rows, rows), out_specs=rows)
    arguments = x, weights, weight_R, dy
    found = jax.jit(lambda *a: _value_and_grads(lambda x, w, v: f(x, w, jnp.asarray(sizes), v), *a))(*arguments)

    def serial(x, w, v):
        halves = [expert_ffn(x[i], w, jnp.asarray(s), v[i], capacity=25) for i, s in zip(cut, sizes, strict=True)]
        return jnp.concatenate(halves)

    cut = slice(0, 25), slice(25, 50)
    expected = jax.jit(lambda *a: _value_and_grads(serial, *a))(*arguments)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=R * 2.0**-24 * np.abs(b).max())


def test_expert_ffn_for_a_tpu_is_three_ragged_products():
    x, weights, weight_R, _ = _arrays("bfloat16", 50, 24, 40)
    with use_abstract_mesh(AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=V5P)):
        trace = jax.make_jaxpr(lambda *a: expert_ffn(*a, capacity=50))
        text = str(trace(x, weights, jnp.zeros(3, jnp.int32), weight_R))
    assert text.count("ragged_dot_general[") == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (0, 1)}, r"up must be float32\[3, 24, 40\] to go with gate, got float32\[3, 40, 24\]"),
        ({"group_sizes_E": np.zeros(4, np.int32)}, r"group_sizes must be int32\[3\]"),
        ({"weight_R": np.zeros(49, np.float32)}, r"weight must be float32\[50\]"),
        ({"implementation": "xls"}, "did you mean 'xla'"),
        ({"implementation": "gpu"}, "it needs a GPU"),
    ],
)
def test_expert_ffn_wrong_argument_is_named(change, message):
    x, weights, weight_R, _ = _arrays("float32", 50, 24, 40)
    arguments = {"x_RD": x, "weights": weights, "group_sizes_E": jnp.zeros(3, jnp.int32), "weight_R": weight_R}
    arguments |= {"capacity": 50} | change
    if "weights" in change:
        arguments["weights"] = weights[0], weights[2], weights[1]
    arguments = {name: jnp.asarray(a) if isinstance(a, np.ndarray) else a for name, a in arguments.items()}
    with pytest.raises((ValueError, dispatch.Unsupported), match=message):
        expert_ffn(**arguments)
