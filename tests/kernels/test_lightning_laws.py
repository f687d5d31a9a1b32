"""Laws of lightning attention that hold for any input, on the public operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import use_abstract_mesh

from pallas_kernels.lightning_attention import lightning_attention, lightning_attention_step, xla
from tests.kernels import lightning_cases as cases
from tests.slow import slow_but

S, H, SLOPES = 150, 16, cases.SLOPES[:2]


def _close(got, wanted, terms=4 * (2 * H + 2 * S)):
    """Equal but for the order of float32 sums: `terms` roundings of the largest value."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        assert np.abs(g - w).max() <= terms * cases.UNIT["float32"] * np.abs(w).max()


def _grads(f, x):
    """Output, state and gradients of q, k, v and the incoming state."""

    @jax.jit
    def run(x):
        outputs, pull = jax.vjp(f, x.q, x.k, x.v, x.state)
        return *outputs, *pull((x.d_out, x.d_state))

    return run(x)


def _op(x, implementation="xla"):
    return lambda q, k, v, state: lightning_attention(
        q, k, v, x.slope, state, segment_ids=x.segment_ids, implementation=implementation
    )


@pytest.fixture(scope="module")
def packed():
    rng = np.random.default_rng(3)
    ids = (rng.random((2, S)) < 0.025).cumsum(axis=1)
    ids[rng.random((2, S)) < 0.1] = -1
    return cases.case(S, "float32", B=2, H=H, slopes=SLOPES, segment_ids=ids)


@pytest.mark.parametrize("cut", slow_but([1, 77], [1, 64, 77, 149]))
def test_lightning_two_halves_with_state_equal_one_whole(cut):
    x = cases.case(S, "float32", H=H, slopes=SLOPES)

    def halves(q, k, v, state):
        first, state = _op(x)(q[:, :cut], k[:, :cut], v[:, :cut], state)
        second, state = _op(x)(q[:, cut:], k[:, cut:], v[:, cut:], state)
        return jnp.concatenate([first, second], axis=1), state

    _close(_grads(halves, x), _grads(_op(x), x))


def test_lightning_prefill_then_steps_equal_one_whole():
    x = cases.case(40, "float32", H=H, slopes=SLOPES)
    whole, last = _op(x)(x.q, x.k, x.v, x.state)
    out, state = _op(x)(x.q[:, :37], x.k[:, :37], x.v[:, :37], x.state)
    outs = [out]
    for t in range(37, 40):
        out, state = lightning_attention_step(x.q[:, t], x.k[:, t], x.v[:, t], x.slope, state)
        outs.append(out[:, None])
    _close((jnp.concatenate(outs, axis=1), state), (whole, last))


def test_lightning_packed_documents_equal_each_document_alone(packed):
    whole = _grads(_op(packed), packed)
    for b in range(2):
        ids = np.asarray(packed.segment_ids[b])
        valid = np.flatnonzero(ids >= 0)
        documents = np.split(valid, np.flatnonzero(np.diff(ids[valid])) + 1)
        row = jax.tree.map(lambda a, b=b: a[b : b + 1], packed._replace(slope=None, segment_ids=None))
        for i, places in enumerate(documents):
            cut = {name: getattr(row, name)[:, places] for name in ("q", "k", "v", "d_out")}
            is_first, is_last = i == 0, i == len(documents) - 1
            state = row.state * jnp.float32(is_first)
            d_state = row.d_state * jnp.float32(is_last)
            alone = row._replace(**cut, state=state, d_state=d_state, slope=packed.slope)
            out, last, dq, dk, dv, d_first = _grads(_op(alone), alone)
            for got, wanted in zip((out, dq, dk, dv), (whole[0], *whole[2:5]), strict=True):
                _close(got, wanted[b : b + 1, places])
            if is_first:
                _close(d_first, whole[5][b : b + 1])
            if is_last:
                _close(last, whole[1][b : b + 1])


def test_lightning_padding_between_tokens_changes_nothing():
    x = cases.case(S, "float32", H=H, slopes=SLOPES)
    places = np.sort(np.random.default_rng(0).choice(2 * S, S, replace=False))
    ids = np.full((1, 2 * S), -1)
    ids[:, places] = 5

    def spread(a):
        return jnp.full((1, 2 * S, *a.shape[2:]), 7.0, a.dtype).at[:, places].set(a)

    wide = x._replace(
        **{n: spread(getattr(x, n)) for n in ("q", "k", "v", "d_out")}, segment_ids=jnp.asarray(ids, jnp.int32)
    )
    got, wanted = _grads(_op(wide), wide), _grads(_op(x), x)
    _close([r if r.shape[1] == len(SLOPES) else r[:, places] for r in got], wanted)


def test_lightning_output_depends_on_no_later_token():
    x = cases.case(S, "float32", H=H, slopes=SLOPES)
    changed = [a.at[:, 100:].set(9.0) for a in (x.q, x.k, x.v)]
    out, _ = _op(x)(x.q, x.k, x.v, x.state)
    assert np.array_equal(out[:, :100], _op(x)(*changed, x.state)[0][:, :100])


@pytest.mark.parametrize("chunk", slow_but([7, 256], [1, 7, 64, 256]))
def test_lightning_xla_chunk_length_does_not_matter(packed, chunk, monkeypatch):
    wanted = _grads(_op(packed), packed)
    monkeypatch.setattr(xla, "CHUNK", chunk)
    _close(_grads(_op(packed), packed), wanted)


def test_lightning_state_none_is_a_zero_state():
    x = cases.case(S, "float32", H=H, slopes=SLOPES)
    _close(
        lightning_attention(x.q, x.k, x.v, x.slope),
        lightning_attention(x.q, x.k, x.v, x.slope, jnp.zeros_like(x.state)),
        terms=0,
    )


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_lightning_jit_and_remat_change_nothing(packed, wrap):
    _close(_grads(wrap(_op(packed)), packed), _grads(_op(packed), packed))


def test_lightning_in_a_scan_over_layers_equals_the_loop(packed):
    """Three layers, each reading the one before; gradients through the scan with remat."""

    def layer(h, slope):
        out, _ = lightning_attention(h, h, h, slope, segment_ids=packed.segment_ids)
        return out / jnp.float32(8), None

    slopes = jnp.stack([packed.slope * f for f in (1.0, 0.5, 0.1)])

    def scanned(h):
        return jax.lax.scan(jax.checkpoint(layer), h, slopes)[0]

    def looped(h):
        for slope in slopes:
            h, _ = layer(h, slope)
        return h

    h = packed.q / 4
    (got, pull_got), (wanted, pull_wanted) = jax.vjp(scanned, h), jax.vjp(looped, h)
    _close((got, pull_got(packed.d_out)), (wanted, pull_wanted(packed.d_out)))


@pytest.mark.parametrize("implementation", ["xla", "tpu"])
def test_lightning_vmap_over_batch_equals_the_batch(implementation):
    x = cases.case(20, "float32", B=2, H=64, slopes=SLOPES, segment_ids=np.arange(40).reshape(2, 20) // 7)

    def one(*row):
        q, k, v, state, ids, d_out, d_state = row
        row = cases.Case(q[None], k[None], v[None], x.slope, state[None], ids[None], d_out[None], d_state[None])
        return jax.tree.map(lambda a: a[0], _grads(_op(row, implementation), row))

    def run():
        return jax.vmap(one)(x.q, x.k, x.v, x.state, x.segment_ids, x.d_out, x.d_state)

    if implementation == "xla":
        got = run()
    else:
        with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()), use_abstract_mesh(cases.tpu_mesh()):
            got = jax.jit(run)()
    _close(got, _grads(_op(x), x))


def test_lightning_vmap_over_slopes_equals_each_alone():
    x = cases.case(20, "float32", H=H, slopes=SLOPES)
    slopes = jnp.stack([x.slope, 2 * x.slope])
    got = jax.vmap(lambda slope: lightning_attention(x.q, x.k, x.v, slope, x.state))(slopes)
    alone = [lightning_attention(x.q, x.k, x.v, slope, x.state) for slope in slopes]
    _close(got, tuple(jnp.stack(column) for column in zip(*alone, strict=True)))
