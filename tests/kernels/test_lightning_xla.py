"""The plain XLA form of lightning attention against NumPy float64, within bounds derived from its arithmetic.

The derivation is that of `lightning_cases.assert_within_rounding`.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.lightning_attention import reference, xla
from tests.kernels import lightning_cases as cases
from tests.slow import slow_but

DTYPES = ["float32", "bfloat16"]


def _check(x: cases.Case):
    cases.assert_within_rounding(cases.xla_passes(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", slow_but([1, 129], [1, 127, 129, 300]))
def test_lightning_xla_is_within_its_rounding_bound(S, dtype):
    _check(cases.case(S, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", cases.LENGTHS)
def test_lightning_xla_is_within_its_rounding_bound_at_every_length(S, dtype):
    _check(cases.case(S, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_xla_is_exact_at_any_document_boundary_and_padding(dtype):
    patterns = np.stack(list(cases.boundary_patterns(400).values()))
    x = cases.case(400, dtype, B=len(patterns), H=16, slopes=cases.SLOPES[::2], segment_ids=patterns)
    _check(x)
    padding = patterns < 0
    out, _, dq, dk, dv, _ = (np.asarray(r, np.float32) for r in cases.xla_passes(x))
    assert all(np.all(r[padding] == 0) for r in (out, dq, dk, dv))


@pytest.mark.parametrize("slopes", [[0.0], [50.0, 1e4, 3e38], [1e-30, 1e-45]], ids=["no decay", "huge", "vanishing"])
def test_lightning_xla_extreme_slopes_neither_overflow_nor_lose(slopes):
    _check(cases.case(300, "float32", H=16, slopes=slopes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_xla_large_norms_keep_the_relative_bound(dtype):
    x = cases.case(300, dtype, H=16, scale=300.0)
    spike = x.k.at[:, 37].multiply(jnp.asarray(1024, x.k.dtype))
    _check(x._replace(k=spike))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_lightning_xla_random_packed_batches_are_within_the_bound(seed):
    _check(random_case(seed, H=32))


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
    # A product and a sum per element of the state, its decay's exponent < 1, 64 terms in an output, one cast.
    units = (64 + 8) * cases.UNIT["float32"] + cases.UNIT[dtype], 8 * cases.UNIT["float32"]
    for result, e, m, unit in zip(results, truth, size, units, strict=True):
        assert np.all(np.abs(np.asarray(result, np.float64) - e) <= 1.05 * unit * m)
    assert np.array_equal(results[1][1], x.state[1])
