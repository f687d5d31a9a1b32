"""Inputs, exact results and error bounds shared by the tests of lightning attention."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels.lightning_attention import reference, xla

NAMES = ("out", "state", "dq", "dk", "dv", "d_state")
CHUNK = 256  # the longest chunk of an implementation
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}  # largest relative error of rounding to nearest

# Around multiples of the chunk lengths 64, 128 and 256, and lengths that are nowhere near one.
LENGTHS = [1, 2, 3, 17, 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 255, 256, 257, 300, 383, 384, 385, 511, 512, 513]
LENGTHS += [640, 767, 1000, 1023, 1024, 1025, 1537, 2047, 2048, 2049, 3000, 4095, 4096, 4097]


def slope(layer: int, head: int, heads: int = 64) -> float:
    """Decay slope of the released model: 2^(-8 (h + 1) / heads) (1 - layer / 79 + 1e-5)."""
    return 2.0 ** (-8 * (head + 1) / heads) * (1 - layer / 79 + 1e-5)


SLOPES = [slope(0, 0), slope(1, 63), slope(40, 31), slope(78, 63), slope(79, 63)]


class Case(NamedTuple):
    """Arguments of a forward and backward pass, in the order that the implementations take them."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    slope: jax.Array
    state: jax.Array
    segment_ids: jax.Array | None
    d_out: jax.Array
    d_state: jax.Array


def case(S, dtype, *, B=1, H=64, slopes=SLOPES, segment_ids=None, seed=0, scale=1.0) -> Case:
    """Normal inputs, `scale` times as large."""
    rng, N = np.random.default_rng(seed), len(slopes)
    q, k, v, d_out = (jnp.asarray(scale * rng.normal(size=(B, S, N, H)), dtype) for _ in range(4))
    state, d_state = (jnp.asarray(scale**2 * rng.normal(size=(B, N, H, H)), jnp.float32) for _ in range(2))
    segment_ids = None if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
    return Case(q, k, v, jnp.asarray(slopes, jnp.float32), state, segment_ids, d_out, d_state)


def both_passes(implementation):
    """(out, state, dq, dk, dv, d_state) of a case, compiled."""

    def run(x: Case):
        return *implementation.forward(*x[:6]), *implementation.backward(*x)

    return jax.jit(run)


def xla_passes(x: Case):
    """Plain XLA's results, compiled for this CPU whatever device a test pretends to have."""
    with use_abstract_mesh(AbstractMesh((), ())):
        return _xla_passes(x)


_xla_passes = both_passes(xla)


def exact(x: Case):
    """The same six arrays in float64."""
    x = Case(*(None if a is None else np.asarray(a) for a in x))
    return *reference.forward(*x[:6]), *reference.backward(*x)


def magnitude(x: Case):
    """The exact passes of absolute values: what every rounding error is a fraction of."""
    positive = {name: jnp.abs(getattr(x, name)) for name in ("q", "k", "v", "state", "d_out", "d_state")}
    return exact(x._replace(**positive))


def assert_no_worse_than_xla(results, x: Case):
    """max|result - float64| <= 2 max|xla - float64| + tiny for every result, and each element within its own bound.

    tiny is one float32 rounding of the largest sum of absolute values: two orders of the same float32 sum differ by as
    much, and on a few tokens xla's may be a lucky one. In an outer product the decay may be applied to either operand
    before the cast; xla's error of a state is the larger of the two, for a state of one or two tokens is all chance.
    """
    truth, size = exact(x), magnitude(x)
    for name, r, plain, e, m in zip(NAMES, results, xla_passes(x), truth, size, strict=True):
        error, allowed = (np.abs(np.asarray(a, np.float64) - e).max() for a in (r, plain))
        if "state" in name and x.q.dtype == jnp.bfloat16:
            other = np.swapaxes(np.asarray(xla_passes(_other_operand(x))[NAMES.index(name)], np.float64), -1, -2)
            allowed = max(allowed, np.abs(other - e).max())
        tiny = UNIT["float32"] * m.max()
        assert error <= 2 * allowed + tiny, f"{name}: {error:.3g} > 2 * {allowed:.3g} + {tiny:.1g}"
    assert_within_rounding(results, x, truth, size)


def _other_operand(x: Case) -> Case:
    """The case whose states are this one's transposed: xla applies their decays to k and q, here to v and d_out."""
    states = (jnp.swapaxes(a, -1, -2) for a in (x.state, x.d_state))
    return Case(x.d_out, x.v, x.k, x.slope, next(states), x.segment_ids, x.q, next(states))


def assert_within_rounding(results, x: Case, truth=None, size=None):
    """Each element within a bound derived from the arithmetic, so that no head hides behind one with larger values.

    Every result is a sum of products, and `magnitude` the same sum of absolute values. To first order a result is off
    by at most that times the relative roundings on the way:

    * float32: one unit per term of a sum (head dim twice, chunk, chunks) and, for a decay exp(-x), x units for its
      rounded exponent, x <= 104 where exp(-x) is not 0, twice.
    * bfloat16: besides, the four casts that an element passes at most: k (or q) times its decay into the state, the
      state, q (or k, v) times its decay, the result. Scores pass two.
    """
    truth, size = truth or exact(x), size or magnitude(x)
    S, H = x.q.shape[1], x.q.shape[3]
    units = (2 * H + CHUNK + 4 * (S // 64 + 1) + 2 * 104) * UNIT["float32"]
    if x.q.dtype == jnp.bfloat16:
        units += 4 * UNIT["bfloat16"]
    for name, result, e, m in zip(NAMES, results, truth, size, strict=True):
        assert result.dtype == (jnp.float32 if "state" in name else x.q.dtype)
        # 1.05: second order; 1e-37: below it float32 has no normal numbers.
        over = np.abs(np.asarray(result, np.float64) - e) - 1.05 * units * m - 1e-37
        assert over.max() <= 0, f"{name} is {over.max():.3g} beyond its bound"


def boundary_patterns(S: int) -> dict[str, np.ndarray]:
    """Segment ids (S,) with boundaries and padding at every kind of place; chunks are 128 or 256 tokens."""
    t = np.arange(S)
    one = np.zeros(S, np.int32)

    def starts(*places):
        return np.isin(t, places).cumsum().astype(np.int32)

    def padded(ids, *slices):
        ids = ids.copy()
        for piece in slices:
            ids[piece] = -1
        return ids

    return {
        "one document": one,
        "one document of id 7": one + 7,
        "boundary after the first token": starts(1),
        "boundary before the last token": starts(S - 1),
        "boundary on a chunk": starts(128),
        "boundary one before a chunk": starts(127),
        "boundary one after a chunk": starts(129),
        "boundaries on every chunk": starts(128, 256, 384),
        "three in one chunk": starts(130, 140, 200),
        "every token its own document": t.astype(np.int32),
        "documents of two tokens": (t // 2).astype(np.int32),
        "documents of 127 tokens": (t // 127).astype(np.int32),
        "an id that comes back": ((t // 50) % 2).astype(np.int32),
        "ids that fall": (100 - t // 60).astype(np.int32),
        "padding at the end": padded(starts(100), np.s_[S - 77 :]),
        "padding of more than a chunk at the end": padded(starts(100), np.s_[S - 200 :]),
        "padding at the start": padded(starts(200), np.s_[:60]),
        "padding of more than a chunk at the start": padded(starts(200), np.s_[:150]),
        "padding inside a document": padded(one, np.s_[100:110], np.s_[250:260]),
        "a padded chunk inside a document": padded(one, np.s_[120:300]),
        "padding across a boundary": padded(starts(150), np.s_[140:160]),
        "every other token padding": np.where(t % 2, -1, t // 100).astype(np.int32),
        "padding with different negative ids": np.where(t % 5 == 0, -1 - t, t // 90).astype(np.int32),
        "all padding": one - 1,
        "all padding but the last token": padded(one, np.s_[: S - 1]),
    }


def tpu_mesh(device_kind: str = "TPU v5") -> AbstractMesh:
    """A mesh in force that makes the code being traced the code for a TPU ("TPU v5" is v5p)."""
    device = AbstractDevice(device_kind=device_kind, num_cores=1, platform="tpu")
    return AbstractMesh((1,), ("chip",), axis_types=(AxisType.Auto,), abstract_device=device)
