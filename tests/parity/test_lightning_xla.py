"""The plain XLA form of lightning attention against NumPy float64, within bounds derived from its arithmetic.

Every result is a sum of products; `magnitude` is the same sum of absolute values. To first order a result is off by at
most that times a sum of relative roundings:

* float32: one unit per term of a sum (head dim twice, chunk, chunks) and, for a decay exp(-x), x units for its rounded
  exponent; x <= 104 where exp(-x) is not 0. Together `_float32_units`.
* bfloat16: besides, the four casts that an element passes at most on its way: k (or q) times its decay into the state,
  the state, q (or k, v) times its decay, the result. Scores pass two.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.lightning_attention import reference, xla
from tests.parity import lightning_cases as cases

BFLOAT16_CASTS = 4
DTYPES = ["float32", "bfloat16"]


def _float32_units(S: int, H: int) -> int:
    return 2 * H + xla.CHUNK + 4 * (S // xla.CHUNK + 1) + 2 * 104


def _assert_within_derived_bound(x: cases.Case):
    results, truth, size = cases.xla_passes(x), cases.exact(x), cases.magnitude(x)
    units = _float32_units(x.q.shape[1], x.q.shape[3]) * cases.UNIT["float32"]
    if x.q.dtype == jnp.bfloat16:
        units += BFLOAT16_CASTS * cases.UNIT["bfloat16"]
    for name, result, e, m in zip(cases.NAMES, results, truth, size, strict=True):
        assert result.dtype == (jnp.float32 if "state" in name else x.q.dtype)
        # 1.05: second order; 1e-37: below it float32 has no normal numbers.
        over = np.abs(np.asarray(result, np.float64) - e) - 1.05 * units * m - 1e-37
        assert over.max() <= 0, f"{name} is {over.max():.3g} beyond its bound"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", [1, 127, 129, 300])
def test_lightning_xla_is_within_its_rounding_bound(S, dtype):
    _assert_within_derived_bound(cases.case(S, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", cases.LENGTHS)
def test_lightning_xla_is_within_its_rounding_bound_at_every_length(S, dtype):
    _assert_within_derived_bound(cases.case(S, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_xla_is_exact_at_any_document_boundary_and_padding(dtype):
    patterns = np.stack(list(cases.boundary_patterns(400).values()))
    x = cases.case(400, dtype, B=len(patterns), H=16, slopes=cases.SLOPES[::2], segment_ids=patterns)
    _assert_within_derived_bound(x)
    padding = patterns < 0
    out, _, dq, dk, dv, _ = (np.asarray(r, np.float32) for r in cases.xla_passes(x))
    assert all(np.all(r[padding] == 0) for r in (out, dq, dk, dv))


@pytest.mark.parametrize("slopes", [[0.0], [50.0, 1e4, 3e38], [1e-30, 1e-45]], ids=["no decay", "huge", "vanishing"])
def test_lightning_xla_extreme_slopes_neither_overflow_nor_lose(slopes):
    _assert_within_derived_bound(cases.case(300, "float32", H=16, slopes=slopes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_xla_large_norms_keep_the_relative_bound(dtype):
    x = cases.case(300, dtype, H=16, scale=300.0)
    spike = x.k.at[:, 37].multiply(jnp.asarray(1024, x.k.dtype))
    _assert_within_derived_bound(x._replace(k=spike))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_lightning_xla_random_packed_batches_are_within_the_bound(seed):
    _assert_within_derived_bound(random_case(seed, H=32))


def random_case(seed: int, H: int) -> cases.Case:
    """Random length, heads, slopes, dtype, documents and padding."""
    rng = np.random.default_rng(1000 + seed)
    B, S, N = rng.integers(1, 4), rng.integers(1, 1200), rng.integers(1, 5)
    ids = (rng.random((B, S)) < rng.choice([0.0, 0.01, 0.3])).cumsum(axis=1)
    ids = np.where(rng.random((B, S)) < rng.choice([0.0, 0.05, 0.7]), -1, ids)
    slopes = [cases.slope(rng.integers(0, 80), rng.integers(0, 64)) for _ in range(N)]
    return cases.case(S, rng.choice(DTYPES), B=B, H=H, slopes=slopes, segment_ids=ids, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_xla_step_is_within_its_rounding_bound(dtype):
    x = cases.case(1, dtype, B=3)
    active = np.array([True, False, True])
    tokens = [a[:, 0] for a in (x.q, x.k, x.v)]
    results = xla.step(*tokens, x.slope, x.state, jnp.asarray(active))
    truth = reference.step(*tokens, x.slope, x.state, active)
    size = reference.step(*(np.abs(a) for a in tokens), x.slope, np.abs(x.state), active)
    units = [_float32_units(1, 64) * cases.UNIT["float32"]] * 2
    units[0] += cases.UNIT[dtype]
    for result, e, m, unit in zip(results, truth, size, units, strict=True):
        assert np.all(np.abs(np.asarray(result, np.float64) - e) <= 1.05 * unit * m)
    assert np.array_equal(results[1][1], x.state[1])
