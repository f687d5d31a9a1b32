"""Parity before speed: the very inputs of a benchmark row, an implementation's results against two oracles.

Rule: max|result - oracle| <= 2 max|xla at that dtype - oracle| + tiny, where `xla` runs on the same slices.
Oracles: NumPy float64 on windows it can do in seconds (the start for what depends on the past, the end for what
depends on the future), and float32 XLA at full length on a few heads. Every element must be finite.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.lightning_attention import reference, xla
from pallas_kernels.lightning_attention.states import or_zeros

WINDOW = 2048  # tokens for NumPy
HEADS = 3  # heads at full length
TINY = 1e-30


class Inputs(NamedTuple):
    """Everything a forward and backward pass take; a state that is None is zero, and so is its gradient."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    slope: jax.Array
    state: jax.Array | None
    segment_ids: jax.Array | None
    d_out: jax.Array
    d_state: jax.Array | None


class Results(NamedTuple):
    """Everything they give; no gradient of a state that is None."""

    out: jax.Array
    state: jax.Array
    dq: jax.Array
    dk: jax.Array
    dv: jax.Array
    d_state: jax.Array | None


def sequence(x: Inputs, results: Results) -> dict[str, dict[str, float]]:
    """{result and oracle: error and allowed error}; of several heads the one nearest to its bound."""
    states = {name: or_zeros(getattr(x, name), x.q) for name in ("state", "d_state")}
    x = x._replace(**states)  # the same oracles compile for both
    report = {f"{name} finite": _finite(r) for name, r in results._asdict().items() if r is not None}
    N = x.q.shape[2]
    for n in sorted({0, N // 2, N - 1})[:HEADS]:
        for name, entry in _whole_length(_heads(x, [n]), _heads(results, [n])).items():
            _worst(report, f"{name} float32", entry)
    ends = sorted({0, N - 1})
    for name, entry in _windows(_first_row(_heads(x, ends)), _first_row(_heads(results, ends))).items():
        _worst(report, f"{name} float64", entry)
    return report


def step(q, k, v, slope, state, results) -> dict[str, dict[str, float]]:
    """The same for a decode step: results = (out, state), all of it against float64."""
    exact = reference.step(q, k, v, slope, state)
    plain = jax.jit(xla.step)(q, k, v, slope, state, None)
    return {n: _entry(*rpe) for n, *rpe in zip(("out", "state"), results, plain, exact, strict=True)}


def _whole_length(x: Inputs, results: Results):
    """float32 XLA stands for the oracle: its own error is 2^-16 of bfloat16's."""
    wide = x._replace(**{name: getattr(x, name).astype(jnp.float32) for name in ("q", "k", "v", "d_out")})
    exact, plain = _all(wide), _all(x)
    rows = zip(Results._fields, results, plain, exact, strict=True)
    return {n: _entry(r, p, e) for n, r, p, e in rows if r is not None}


def _windows(x: Inputs, results: Results):
    """out and dq on the first tokens, which no later token changes; dk and dv on the last, no earlier one does."""
    S = x.q.shape[1]
    W = min(WINDOW, S)
    report = {}
    for names, tokens in ((("out", "dq"), slice(0, W)), (("dk", "dv"), slice(S - W, S))):
        cut = {n: getattr(x, n)[:, tokens] for n in ("q", "k", "v", "d_out")}
        window = x._replace(**cut, segment_ids=None if x.segment_ids is None else x.segment_ids[:, tokens])
        exact, plain = _exact(window), _all(window)
        for n in names:
            report[n] = _entry(getattr(results, n)[:, tokens], getattr(plain, n), getattr(exact, n))
    return report


def _heads(arrays, indices):
    """The same NamedTuple with these heads alone."""
    indices = jnp.array(indices)
    axes = {"slope": 0, "state": 1, "d_state": 1, "segment_ids": None}

    def take(name, x):
        axis = axes.get(name, 2)
        return x if x is None or axis is None else jnp.take(x, indices, axis)

    return type(arrays)(**{name: take(name, x) for name, x in arrays._asdict().items()})


def _first_row(arrays):
    return type(arrays)(**{n: x if x is None or n == "slope" else x[:1] for n, x in arrays._asdict().items()})


def _all(x: Inputs):
    return _compiled_all(jax.default_backend())(x)


@functools.cache
def _compiled_all(backend: str):
    def run(x: Inputs):
        arguments = x.q, x.k, x.v, x.slope, x.state, x.segment_ids
        return Results(*xla.forward(*arguments), *xla.backward(*arguments, x.d_out, x.d_state))

    # Nobody times the oracle: on a GPU its matmuls need not be tried out when it compiles.
    return jax.jit(run, compiler_options={"xla_gpu_autotune_level": 0} if backend == "gpu" else None)


def _exact(x: Inputs):
    x = jax.tree.map(np.asarray, x)
    arguments = x.q, x.k, x.v, x.slope, x.state, x.segment_ids
    return Results(*reference.forward(*arguments), *reference.backward(*arguments, x.d_out, x.d_state))


def _entry(result, plain, exact) -> dict[str, float]:
    if isinstance(exact, jax.Array):  # float32: compared where it is, a million tokens are a gigabyte a head in float64
        error, allowed = (float(_furthest(a, exact)) for a in (result, plain))
    else:
        error, allowed = (float(np.max(np.abs(np.asarray(a, np.float64) - exact))) for a in (result, plain))
    return {"error": error, "allowed": 2 * allowed + TINY}


@jax.jit
def _furthest(x, exact):
    return jnp.max(jnp.abs(x.astype(jnp.float32) - exact))


def _finite(result) -> dict[str, float]:
    return {"error": float(_not_finite(result)), "allowed": 0.0}


@jax.jit
def _not_finite(x):
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.float32)


def _worst(report, name, entry) -> None:
    """Keeps the entry nearest to, or furthest beyond, what is allowed."""
    held = report.get(name)
    if held is None or entry["error"] * held["allowed"] > held["error"] * entry["allowed"]:
        report[name] = entry
