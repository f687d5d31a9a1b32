"""The TPU kernels of a decode step, interpreted on the CPU, against NumPy float64: idle rows, one row, many rows.

The interpreter fills memory that nothing wrote with NaN, refuses reads out of bounds and watches for races. Bounds
as in `test_decode_operations`: of float32 by its rounding, of bfloat16 twice plain XLA's error.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import use_abstract_mesh

from pallas_kernels import few_rows
from pallas_kernels.attention_step import attention_step
from pallas_kernels.attention_step import reference as attention_reference
from pallas_kernels.expert_step import expert_step
from pallas_kernels.expert_step import reference as expert_reference
from pallas_kernels.lightning_step import empty_rings, lightning_fold, lightning_ring_step, lightning_step
from pallas_kernels.lightning_step import reference as lightning_reference
from pallas_kernels.norm_step import norm_step
from pallas_kernels.projection_step import projection_parts, projection_step
from pallas_kernels.projection_step import reference as projection_reference
from tests.kernels import lightning_cases
from tests.kernels import test_decode_operations as operations
from tests.kernels.test_decode_operations import EPS, LAYER, Numbers, random_experts
from tests.slow import slow_but

DTYPES = pytest.mark.parametrize("dtype", slow_but(["bfloat16"], ["float32", "bfloat16"]))


def both(operation, *arguments, **named) -> dict:
    """What the TPU kernel, interpreted, and plain XLA give."""
    strict = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
    plain = jax.jit(functools.partial(operation, implementation="xla", **named))(*arguments)
    with pltpu.force_tpu_interpret_mode(strict), use_abstract_mesh(lightning_cases.tpu_mesh()):
        kernel = jax.jit(functools.partial(operation, implementation="tpu", **named))
        return {"xla": plain, "tpu": jax.block_until_ready(kernel(*arguments))}


def judge(outs: dict, exact, bound, dtype: str) -> None:
    """As there: bfloat16 has no bound but plain XLA's error."""
    operations.judge(outs, exact, bound if dtype == "float32" else None)


def rounded(dtype: str):
    return (lambda x: np.asarray(x.astype(dtype), np.float64)) if dtype == "bfloat16" else (lambda x: x)


@DTYPES
@pytest.mark.parametrize("rows", [1, 70], ids=["one row", "many"])
def test_projection_equals_float64(rows, dtype, monkeypatch):
    monkeypatch.setattr("pallas_kernels.projection_step.tpu.DEPTH", 128)  # three steps of the sum
    make, D = Numbers(dtype), 384
    x, matrices = make.filled_up(rows, D), [make(2, D, 256), make(2, D, 128), make(2, D, 384)]
    exact = projection_reference.forward(x[:rows], matrices, LAYER)
    bound = 2 * D * EPS * projection_reference.forward(abs(x[:rows]), [abs(w) for w in matrices], LAYER).max()
    outs = both(projection_step, x, matrices, LAYER, dtype=jnp.float32)
    judge({name: out[:rows] for name, out in outs.items()}, exact, bound, dtype)
    outs = both(projection_parts, x, matrices[0], LAYER)
    judge({name: out.sum(0)[:rows] for name, out in outs.items()}, exact[:, :256], bound, dtype)


@DTYPES
@pytest.mark.parametrize("rows", [1, 5, 72], ids=["one row", "few", "many"])
def test_experts_equal_float64(rows, dtype, monkeypatch):
    monkeypatch.setattr("pallas_kernels.expert_step.tpu.BLOCKS", 0)  # two blocks of columns an expert
    x, choice, weight, matrices = random_experts(dtype, rows, E=5, F=256)
    real = x[:rows], choice[:, :rows], weight[:, :rows]
    exact = expert_reference.forward(*real, matrices, LAYER)
    size = expert_reference.forward(*map(abs, real), tuple(map(abs, matrices)), LAYER).max()
    outs = both(expert_step, x, choice, weight, matrices, LAYER, rows=rows)
    judge({name: out.sum(0)[:rows] for name, out in outs.items()}, exact, (2 * 128 + 2 * 256 + 20) * EPS * size, dtype)


def test_experts_that_no_row_chose_are_not_read():
    x, choice, weight, matrices = random_experts("float32", 5, E=5, F=128)
    choice = jnp.where(choice == 4, 5, choice)
    weight = jnp.where(choice == 5, 0.0, weight)
    poisoned = tuple(matrix.at[:, 4].set(jnp.nan) for matrix in matrices)
    outs = both(expert_step, x, choice, weight, poisoned, LAYER, rows=5)
    plain = expert_step(x, choice, weight, matrices, LAYER, rows=5, implementation="xla")
    assert np.abs(outs["tpu"][0, :5] - plain[0, :5]).max() <= 1000 * EPS * np.abs(plain[0, :5]).max()


def test_experts_give_nothing_where_no_row_is_active():
    x, choice, weight, matrices = random_experts("float32", 5, E=5, F=128)
    outs = both(expert_step, x, jnp.full_like(choice, 5), jnp.zeros_like(weight), matrices, LAYER, rows=5)
    assert not np.asarray(outs["tpu"][0, :5]).any()


def _lightning(dtype: str):
    make, B, N, H = Numbers(dtype), 3, 8, 64
    slope = jnp.asarray(make.random.uniform(0.01, 0.5, size=(2, N)), jnp.float32)
    active = jnp.array([True, False, True])
    return make.filled_up(B, 4 * N * H), make(2, B, N, H, H, dtype="float32"), slope, make(2, N, H), active, LAYER


@DTYPES
def test_lightning_step_equals_float64_and_idle_rows_keep_their_state(dtype):
    arguments = _lightning(dtype)
    B, H = 3, 64
    outs = both(lightning_step, *arguments)
    exact = lightning_reference.forward(arguments[0][:B], *arguments[1:], rounded=rounded(dtype))
    size = np.abs(arguments[0][:B]).max() ** 2 * H + np.abs(arguments[1]).max()
    for name, (o, u, states) in outs.items():
        assert np.array_equal(states[0], arguments[1][0]) and np.array_equal(states[1, 1], arguments[1][1, 1]), name
        assert not np.asarray(o[1]).any() and not np.asarray(u[1]).any(), name
    for place in range(2):
        found = {name: out[place][:B] for name, out in outs.items()}
        judge(found, exact[place], 4 * H * EPS * size * np.abs(exact[0]).max(), dtype)
    judge({name: out[2][1] for name, out in outs.items()}, exact[2], 8 * EPS * size, dtype)


@DTYPES
def test_steps_with_a_ring_and_its_fold_equal_float64(dtype):
    projected, states, slope, weight, _, _ = _lightning(dtype)
    B, H, make = 3, 64, Numbers(dtype, seed=1)
    active_SB = np.array([[1, 1, 1], [1, 0, 1]], bool)  # who stops stays so until the fold
    rings, exact_states = empty_rings(states, jnp.dtype(dtype)), np.array(states, np.float64)
    for place, active in enumerate(active_SB):
        x = projected if place == 0 else make.filled_up(*projected.shape)
        told = jnp.asarray(active), jnp.array([place], jnp.int32), LAYER
        outs = both(lightning_ring_step, x, states, rings, slope, weight, told)
        arguments = x[:B], exact_states, slope, weight, active, LAYER
        exact = lightning_reference.forward(*arguments, rounded=rounded(dtype))
        exact_states[1] = exact[2]
        size = np.abs(exact_states).max() * H
        for number in range(2):
            found = {name: out[number][:B] for name, out in outs.items()}
            judge(found, exact[number], 4 * H * EPS * size * np.abs(exact[0]).max(), dtype)
        for old, new in zip(rings, outs["tpu"][2], strict=True):
            changed = np.asarray(old != new).any(axis=-1)  # (L, B, N, RING)
            assert changed[1, active, :, place].all() and changed.sum() == 8 * active.sum()
        rings = outs["tpu"][2]
    count_B = jnp.asarray(active_SB.sum(axis=0), jnp.int32)
    outs = both(lightning_fold, states, rings, slope, count_B)
    judge({name: out[1] for name, out in outs.items()}, exact_states[1], 16 * EPS * size, dtype)


@DTYPES
def test_attention_step_equals_float64_and_idle_rows_write_nothing(dtype, monkeypatch):
    monkeypatch.setattr("pallas_kernels.attention_step.tpu.BLOCKS", (128,))
    make, (B, K, G, T, H) = Numbers(dtype), (4, 2, 3, 256, 64)
    angle = jnp.asarray(make.random.uniform(0, 7, size=(B, 16)), jnp.float32)
    keys, values = make(2, B, K, T, H), make(2, B, K, T, H)
    told = jnp.array([0, 100, T - 1, 127], jnp.int32), jnp.array([True, False, True, True]), LAYER
    x = make.filled_up(B, (G + 2) * K * H)
    outs = both(attention_step, x, angle, keys, values, told)
    exact, *stores = attention_reference.forward(x[:B], angle, keys, values, told, rounded=rounded(dtype))
    for name, (_, *found) in outs.items():
        for old, new in zip((keys, values), found, strict=True):
            assert np.array_equal(new[0], old[0]) and np.array_equal(new[1, 1], old[1, 1]), name
    judge({name: out[0][:B] for name, out in outs.items()}, exact, 4 * (T + H) * EPS * np.abs(values).max(), dtype)
    for place, store in enumerate(stores, 1):
        judge({name: out[place][1] for name, out in outs.items()}, store, 8 * EPS * np.abs(store).max(), dtype)


@DTYPES
@pytest.mark.parametrize("rows", [5, 70], ids=["few", "two blocks of rows"])
def test_norm_and_router_equal_float64(rows, dtype):
    (x, parts, norm, mixed, router), exact = operations.norm_case(dtype, rows == 5, rows)

    def step(x, parts, **named):
        return norm_step(x, parts, norm, rows=rows, mixed=mixed, router=router, **named)

    outs = both(step, x, parts)
    judge({name: out[0][:rows] for name, out in outs.items()}, exact, 16 * EPS * np.abs(exact).max(), dtype)
    operations.judge_routes(outs, router, np.abs(exact).max())
    alone = both(lambda x, parts, **named: norm_step(x, parts, norm, rows=rows, **named)[0], x, parts)
    assert np.abs(alone["tpu"][:rows] - alone["xla"][:rows]).max() <= 2.0**-6 * np.abs(alone["xla"][:rows]).max()


def test_rows_that_only_fill_up_may_be_anything():
    x = jnp.pad(jnp.ones((3, 128)), ((0, 5), (0, 0)), constant_values=jnp.nan)
    outs = both(projection_step, x, [jnp.ones((2, 128, 128))], LAYER)
    assert few_rows.filled_up(3) == 8 and np.array_equal(outs["tpu"][:3], np.full((3, 128), 128.0))
