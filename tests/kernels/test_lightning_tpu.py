"""The TPU kernels of lightning attention, interpreted on the CPU, against NumPy float64.

The interpreter fills memory that nothing wrote with NaN, refuses reads out of bounds and watches for races. Bound: not
worse than twice plain XLA at the same dtype, and each element within its rounding (`lightning_cases`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import use_abstract_mesh

from mm01_jax.plan import traced_work
from pallas_kernels.lightning_attention import lightning_attention_step, reference, tiling, tpu
from tests.kernels import lightning_cases as cases
from tests.kernels.test_lightning_xla import random_case
from tests.slow import slow_but

DTYPES = ["float32", "bfloat16"]


@pytest.fixture(autouse=True)
def interpreted():
    """The kernels run as they are, in the interpreter, for a TPU v5p."""
    strict = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
    with pltpu.force_tpu_interpret_mode(strict), use_abstract_mesh(cases.tpu_mesh()):
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two chunks in bfloat16, of one in float32, so that short sequences cross from block to block."""
    small = dataclasses.replace(tiling.DEFAULT, block_bytes=2 * 128 * 128 * 2)
    monkeypatch.setattr(tiling, "DEFAULT", small)


def _check(x: cases.Case):
    cases.assert_no_worse_than_xla(cases.both_passes(tpu)(x), x)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("S", "dtype"),
    slow_but(
        [(512, "bfloat16"), (129, "float32")], [(256, "float32"), (512, "bfloat16"), (1, "bfloat16"), (129, "float32")]
    ),
)
def test_lightning_tpu_is_no_worse_than_xla(S, dtype):
    _check(cases.case(S, dtype, slopes=cases.SLOPES[::2]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", cases.LENGTHS)
def test_lightning_tpu_is_no_worse_than_xla_at_every_length(S, dtype):
    _check(cases.case(S, dtype, H=128 if S == 1024 else 64))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_lightning_tpu_is_exact_at_any_document_boundary_and_padding(dtype):
    patterns = np.stack(list(cases.boundary_patterns(384).values()))
    x = cases.case(384, dtype, B=len(patterns), slopes=cases.SLOPES[:1], segment_ids=patterns)
    results = cases.both_passes(tpu)(x)
    cases.assert_no_worse_than_xla(results, x)
    out, _, dq, dk, dv, _ = (np.asarray(r, np.float32) for r in results)
    assert all(np.all(r[patterns < 0] == 0) for r in (out, dq, dk, dv))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_tpu_is_exact_at_boundaries_for_every_slope(dtype):
    patterns = np.stack(list(cases.boundary_patterns(500).values()))
    _check(cases.case(500, dtype, B=len(patterns), segment_ids=patterns))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_tpu_large_norms_keep_the_bound(dtype):
    _check(cases.case(300, dtype, scale=300.0))


@pytest.mark.slow
@pytest.mark.parametrize("slopes", [[0.0], [50.0, 1e4, 3e38], [1e-30]], ids=["no decay", "huge", "vanishing"])
def test_lightning_tpu_extreme_slopes_neither_overflow_nor_lose(slopes):
    _check(cases.case(300, "float32", slopes=slopes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_lightning_tpu_random_packed_batches_are_no_worse_than_xla(seed):
    _check(random_case(seed, H=64))


@pytest.mark.slow
def test_lightning_tpu_tiles_of_v6_give_the_same_bound():
    with use_abstract_mesh(cases.tpu_mesh("TPU v6 lite")):
        assert tiling.tiling("TPU v6 lite").chunk == 256
        _check(cases.case(1024, "bfloat16", H=128, slopes=cases.SLOPES[:2]))


@pytest.mark.slow
def test_lightning_tpu_head_dim_256():
    _check(cases.case(300, "bfloat16", H=256, slopes=cases.SLOPES[:1]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_tpu_step_is_float32_exact_and_keeps_inactive_rows(dtype):
    x = cases.case(1, dtype, B=3, slopes=cases.SLOPES + cases.SLOPES[:3])
    q, k, v = (a[:, 0] for a in (x.q, x.k, x.v))
    active = np.array([True, False, True])
    out, state = lightning_attention_step(q, k, v, x.slope, x.state, active_B=jnp.asarray(active), implementation="tpu")
    exact_out, exact_state = reference.step(q, k, v, x.slope, x.state, active)
    size_out, size_state = reference.step(*(np.abs(a) for a in (q, k, v)), x.slope, np.abs(x.state), active)
    # A product and a sum per element of the state, 64 of them in an output; one rounding to the output's dtype.
    units = cases.UNIT["float32"]
    assert np.all(np.abs(state - exact_state) <= 4 * units * size_state)
    assert np.all(np.abs(np.asarray(out, np.float64) - exact_out) <= (70 * units + 1.01 * cases.UNIT[dtype]) * size_out)
    assert np.array_equal(state[1], x.state[1]) and np.all(np.asarray(out[1], np.float32) == 0)


def test_lightning_tpu_unsupported_says_why():
    x = cases.case(4, "float32", H=32)
    assert "head_dim must be 64, 128 or 256, got 32" in tpu.unsupported(*x[:6])
    with use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        assert "not for a TPU" in tpu.unsupported(*x[:6])


def test_what_the_kernels_tell_the_compiler_is_what_their_products_come_to():
    shapes = [jax.ShapeDtypeStruct((2, 512, 4, 128), jnp.bfloat16)] * 3
    state, slope = jax.ShapeDtypeStruct((2, 4, 128, 128), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)

    def both(q, k, v, slope, state):
        out, last = tpu.forward(q, k, v, slope, state, None)
        return tpu.backward(q, k, v, slope, state, None, out, last)

    traced = jax.make_jaxpr(both)(*shapes, slope, state)
    told = [eqn.params["cost_estimate"] for eqn in _equations(traced.jaxpr) if eqn.primitive.name == "pallas_call"]
    assert len(told) == 3  # forward, the queries' gradient, the reverse pass
    assert sum(cost.flops for cost in told) == traced_work.count(traced.jaxpr, {}).flops
    once = 4 * shapes[0].size * 2 + 2 * state.size * 4  # q, k, v, out and both states
    assert once < told[0].bytes_accessed < 1.01 * once


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in traced_work._inner(eqn) if eqn.primitive.name != "pallas_call" else ():
            yield from _equations(inner)
