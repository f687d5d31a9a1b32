"""int8 matrices: the digits, and products with them against NumPy float64 of the numbers that they stand for.

Bound of the digits: half a step of the column's scale, and a few roundings. Of products by the Hopper kernels,
interpreted: error at most twice that of plain XLA at bfloat16; in float32 as the sums allow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from mm01_jax.convert import quantize
from pallas_kernels import int8_gpu
from pallas_kernels.expert_ffn import expert_ffn, reference, tpu
from pallas_kernels.expert_step import expert_step
from pallas_kernels.expert_step import gpu_int8 as expert_step_int8
from pallas_kernels.expert_step import reference as expert_step_reference
from pallas_kernels.expert_step.gpu_int8_stream import Cut
from pallas_kernels.expert_step.gpu_slots import Slots
from pallas_kernels.few_rows import columns, filled_up, in_rows
from pallas_kernels.grouped_matmul import gpu_tiles, grouped_matmul
from pallas_kernels.grouped_matmul import tpu as grouped_tpu
from pallas_kernels.int8 import Int8, dequantized, in_layer, quantized

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
MESH = AbstractMesh((1,), ("chip",), axis_types=(AxisType.Auto,), abstract_device=H200)


def drawn(*shape, seed=0):
    """Columns whose sizes differ by a hundred, one of zeros."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-1, 1, (*shape[:-2], 1, shape[-1]))
    sizes[..., 3] = 0
    return (rng.normal(size=shape) * sizes * shape[-2] ** -0.25).astype(np.float32)


@pytest.mark.parametrize("summed", [(-2,), (-3, -2)])
def test_int8_is_half_a_step_off_and_numpy_gives_the_same_digits(summed):
    weight = drawn(3, 40, 24)
    int8 = quantized(jnp.asarray(weight), summed)
    off = np.abs(np.asarray(dequantized(int8, summed), np.float64) - weight)
    steps = np.expand_dims(np.asarray(int8.scale, np.float64), summed)
    assert (off <= steps * (0.5 + 256 * 2.0**-24)).all()
    assert int8.values.dtype == jnp.int8 and np.abs(np.asarray(int8.values)).max() == 127
    for ours, theirs in zip(int8, quantize.quantized(weight, summed), strict=True):
        assert ours.dtype == theirs.dtype and (np.asarray(ours) == theirs).all()


@pytest.mark.parametrize("size", [1e-36, 1e-37, 1e-38, 1e-42])
def test_int8_of_a_column_too_small_to_divide_by_is_zeros(size):
    weight = drawn(2, 8, 8)
    weight[1, :, 5] = size
    for values, scale in (quantized(jnp.asarray(weight), (-2,)), quantize.quantized(weight, (-2,))):
        assert not np.asarray(values)[1, :, 5].any()
        assert np.isfinite(np.asarray(scale)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_int8_of_what_is_not_finite_has_a_scale_that_is_not(bad):
    weight = drawn(2, 8, 8)
    weight[1, 2, 5] = bad
    scale = np.asarray(quantized(jnp.asarray(weight), (-2,)).scale)
    assert (~np.isfinite(scale)).sum() == 1 and not np.isfinite(scale[1, 5])


def without_registers(monkeypatch):
    """The interpreter (jax 0.12) knows neither a left operand in registers nor instructions of our own."""

    def add_products(totals, blocks, rows):
        x = rows[...].astype(jnp.float32)

        def columns(block, part):
            part = lax.axis_index("warpgroup") if part is int8_gpu.OWN else part
            return lax.dynamic_slice_in_dim(block[...].astype(jnp.float32), part * 64, 64, axis=1)

        return [total + columns(*block).T @ x.T for total, block in zip(totals, blocks, strict=True)]

    monkeypatch.setattr(int8_gpu, "add_products", add_products)
    monkeypatch.setattr(int8_gpu, "turned", jnp.transpose)


def experts(R, D, F, L=2, E=3):
    """(rows, int8 matrices of a stack of layers, their rows' factors)."""
    rng = np.random.default_rng(0)
    weights = tuple(quantized(jnp.asarray(drawn(*s)), (-2,)) for s in ((L, E, D, F), (L, E, D, F), (L, E, F, D)))
    return rng.normal(size=(R, D)).astype(np.float32), weights, jnp.asarray(rng.random(R), jnp.float32)


def exact_of(x, weights, sizes, weight_R):
    return reference.forward(x, [dequantized(in_layer(w, 1), (-2,)) for w in weights], sizes, weight_R)


@pytest.mark.parametrize("form", ["xla", "tpu", "tpu, few rows"])
def test_experts_of_int8_in_a_stack_equal_float64(form):
    R, D, F, sizes = 50, 24, 40, np.array([7, 0, 30], np.int32)
    x, weights, weight_R = experts(R, D, F)
    if form == "xla":
        sizes_and = {"layer": jnp.int32(1), "capacity": R, "implementation": "xla"}
        y = jax.jit(lambda *a: expert_ffn(*a, **sizes_and))(x, weights, jnp.asarray(sizes), weight_R)
    else:
        capacity = R if "few" in form else grouped_tpu.FEW + 1
        y = tpu.forward(jnp.asarray(x), in_layer(weights, 1), jnp.asarray(sizes), weight_R, capacity, 1)
    exact = exact_of(x, weights, sizes, weight_R)
    size = exact_of(np.abs(x), jax.tree.map(jnp.abs, weights), sizes, weight_R)
    assert np.abs(np.asarray(y, np.float64) - exact).max() <= (D + F + 20) * 2.0**-24 * np.abs(size).max()


@pytest.mark.parametrize("sizes", [[128, 0, 256], [0, 128, 0], [0, 0, 0]], ids=["rows after them", "one group", "none"])
def test_experts_of_int8_on_hopper_are_no_worse_than_xla(sizes, monkeypatch):
    without_registers(monkeypatch)
    monkeypatch.setattr(gpu_tiles, "MULTIPROCESSORS", 3)  # a program has several items
    x, weights, weight_R = experts(512, 128, 256)
    x, sizes = jnp.asarray(x, jnp.bfloat16), jnp.asarray(sizes, jnp.int32)
    exact = exact_of(x, weights, sizes, weight_R)

    def error(name):
        told = {"layer": jnp.int32(1), "capacity": 512, "multiple": 128, "implementation": name}
        y = jax.block_until_ready(jax.jit(lambda *a: expert_ffn(*a, **told))(x, weights, sizes, weight_R))
        return np.abs(np.asarray(y, np.float64) - exact).max()

    allowed = error("xla")
    with plgpu.force_gpu_interpret_mode(), use_abstract_mesh(MESH):
        assert error("gpu") <= 2 * allowed


def test_int8_product_is_chosen_on_hopper_and_lowers():
    x, sizes = jax.ShapeDtypeStruct((512, 128), jnp.bfloat16), jax.ShapeDtypeStruct((3,), jnp.int32)
    weights = Int8(jax.ShapeDtypeStruct((3, 128, 256), jnp.int8), jax.ShapeDtypeStruct((3, 256), jnp.float32))
    with use_abstract_mesh(MESH):
        traced = jax.jit(lambda *a: grouped_matmul(*a, capacity=1, multiple=128)).trace(x, weights, sizes)
        assert traced.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.custom_call @mosaic_gpu") == 1


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("scale", lambda w: w._replace(scale=w.scale[:, :-1]), "gate.scale must be float32[3, 40]"),
        (
            "values",
            lambda w: w._replace(values=w.values.astype(jnp.float32)),
            "gate.values must be (E, D=24, F) in int8",
        ),
    ],
)
def test_experts_refuse_int8_that_does_not_fit(part, change, said):
    x, weights, weight_R = experts(8, 24, 40)
    gate, up, down = in_layer(weights, 1)
    with pytest.raises(ValueError, match=part) as refused:
        expert_ffn(jnp.asarray(x), (change(gate), up, down), jnp.zeros(3, jnp.int32), weight_R, capacity=8)
    assert said in str(refused.value)


@pytest.mark.parametrize("wide", [False, True])
def test_a_decode_step_of_int8_on_hopper_is_what_its_numbers_give(wide, monkeypatch):
    """The inward half exact but for one rounding; the outward one, whose rows are given, to float32's."""
    without_registers(monkeypatch)
    L, E, D, F = 2, 4, 256, 384
    up_cut, down_cut = Cut(width=64, warpgroups=4), Cut(depth=96)
    if wide:
        up_cut, down_cut = Cut(), Cut(width=64)
    gate, up, down = (quantized(jnp.asarray(drawn(*s)), (-2,)) for s in ((L, E, D, F), (L, E, D, F), (L, E, F, D)))
    rng = np.random.default_rng(2)
    x, weight = jnp.asarray(rng.normal(size=(8, D)), jnp.bfloat16), rng.random(4 * 64).astype(np.float32)
    slots = Slots(jnp.asarray([[2], [0], [3], [E]], jnp.int32), jnp.asarray(weight), jnp.asarray([3], jnp.int32))
    layer = jnp.asarray([1], jnp.int32)
    with plgpu.force_gpu_interpret_mode(), use_abstract_mesh(MESH):
        hidden = expert_step_int8.up(x[None], gate, up, slots, layer, count=4, cut=up_cut)
        summed = expert_step_int8.down(hidden, down, slots, layer, splits=2, cut=down_cut)
        each = expert_step_int8.down_each(hidden, down, slots, layer)
    hidden, summed, each = (np.asarray(a, np.float64) for a in (hidden, summed, each))
    widened = [np.asarray(dequantized(w, (-2,)), np.float64)[1] for w in (gate, up, down)]
    total = 0
    for slot, expert in enumerate((2, 0, 3)):
        g, u = (np.asarray(x, np.float64) @ w[expert] for w in widened[:2])
        exact = weight.reshape(4, 64)[slot, :8, None] * g / (1 + np.exp(-g)) * u
        assert np.abs(hidden[slot] - exact).max() <= 2.0**-8 * np.abs(exact).max()
        out = hidden[slot] @ widened[2][expert]
        size = (np.abs(hidden[slot]) @ np.abs(widened[2][expert])).max()
        assert np.abs(each[slot] - out).max() <= F * 2.0**-24 * size
        total = total + out
    size = np.abs(hidden[:3]).max() * np.abs(widened[2]).sum(1).max()
    assert np.abs(summed.sum(0) - total).max() <= 4 * F * 2.0**-24 * size


@pytest.mark.parametrize("rows", [1, 16, 128])
def test_a_decode_step_of_int8_lowers_for_hopper(rows):
    L, E, D, F = 2, 4, 1024, 1536
    A = jax.ShapeDtypeStruct

    def int8(*shape):
        return Int8(A(shape, jnp.int8), A((*shape[:2], shape[3]), jnp.float32))

    matrices = int8(L, E, D, F), int8(L, E, D, F), int8(L, E, F, D)
    x, choice = A((filled_up(rows), D), jnp.bfloat16), A((2, columns(rows)), jnp.int32)
    weight, layer = A(choice.shape, jnp.float32), A((1,), jnp.int32)
    with use_abstract_mesh(MESH):
        step = jax.jit(lambda *a: expert_step(*a, rows=rows, implementation="gpu"))
        lowered = step.trace(x, choice, weight, matrices, layer).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("@mosaic_gpu") == (2 if rows == 1 else 3)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 16, 33, 128])
def test_a_decode_step_of_int8_by_registers_is_no_worse_than_xla(rows):
    """What no interpreter runs: columns turned and widened in registers. A row without an expert among them."""
    L, E, D, F, rng = 2, 8, 448, 576, np.random.default_rng(rows)
    matrices = tuple(quantized(jnp.asarray(drawn(*s)), (-2,)) for s in ((L, E, D, F), (L, E, D, F), (L, E, F, D)))
    x = jnp.asarray(np.pad(rng.normal(size=(rows, D)), ((0, filled_up(rows) - rows), (0, 0)), constant_values=np.nan))
    choice = np.stack([rng.permutation(E)[:2] for _ in range(columns(rows))], axis=1).astype(np.int32)
    if rows > 1:
        choice[0, rows // 2] = E
    weight, layer = rng.random(choice.shape).astype(np.float32), jnp.asarray([1], jnp.int32)
    told = x.astype(jnp.bfloat16), jnp.asarray(choice), jnp.asarray(weight), matrices, layer
    exact = expert_step_reference.forward(
        np.asarray(told[0][:rows], np.float64),
        choice[:, :rows],
        weight,
        [dequantized(w, (-2,)) for w in matrices],
        layer,
    )

    def error(name):
        y = jax.jit(lambda *a: expert_step(*a, rows=rows, implementation=name))(*told)
        return np.abs(np.asarray(in_rows(y, rows), np.float64).sum(0)[:rows] - exact).max()

    assert error("gpu") <= 2 * error("xla")


@pytest.mark.gpu
def test_experts_of_int8_by_registers_are_no_worse_than_xla():
    sizes = jnp.asarray([128, 0, 256], jnp.int32)
    x, weights, weight_R = experts(512, 384, 640)
    x = jnp.asarray(x, jnp.bfloat16)
    exact = exact_of(x, weights, sizes, weight_R)

    def error(name):
        told = {"layer": jnp.int32(1), "capacity": 512, "multiple": 128, "implementation": name}
        y = jax.jit(lambda *a: expert_ffn(*a, **told))(x, weights, sizes, weight_R)
        return np.abs(np.asarray(y, np.float64) - exact).max()

    assert error("gpu") <= 2 * error("xla")
