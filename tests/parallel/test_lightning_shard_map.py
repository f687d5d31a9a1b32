"""Lightning attention inside `jax.shard_map` with replication checking: values and gradients as on one device."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import lightning_attention, lightning_attention_step
from tests.kernels import lightning_cases as cases
from tests.slow import slow_but

TENSOR = PartitionSpec("data", None, "tensor")
STATE = PartitionSpec("data", "tensor")


def _case(S=20):
    ids = np.arange(2 * S).reshape(2, S) // 7
    return cases.case(S, "float32", B=2, H=64, slopes=cases.SLOPES[:2], segment_ids=ids)


def _mesh(axis_type):
    return jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(axis_type,) * 2)


def _close(got, wanted):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        # Order of float32 sums: head dim, chunk and length.
        np.testing.assert_allclose(g, w, rtol=0, atol=300 * cases.UNIT["float32"] * np.abs(w).max())


def _grads(f, x):
    outputs, pull = jax.vjp(f, x.q, x.k, x.v)
    return *outputs, *pull((x.d_out, x.d_state))


@pytest.mark.parametrize(
    ("implementation", "axis_type"),
    slow_but(
        [("xla", AxisType.Auto), ("xla", AxisType.Explicit), ("tpu", AxisType.Auto)],
        itertools.product(["xla", "tpu"], [AxisType.Auto, AxisType.Explicit]),
    ),
)
def test_lightning_over_data_and_heads_equals_one_device(axis_type, implementation, monkeypatch):
    """The state starts as zeros that vary over no axis, the segment ids over one, q, k, v over two."""
    x = _case()
    wanted = _grads(lambda q, k, v: lightning_attention(q, k, v, x.slope, segment_ids=x.segment_ids), x)
    local = functools.partial(_local, implementation=implementation)
    mesh = _mesh(axis_type)
    specs = TENSOR, TENSOR, TENSOR, PartitionSpec("tensor"), PartitionSpec("data")
    with jax.set_mesh(mesh):
        x = cases.Case(
            *(_put(mesh, a, s) for a, s in zip(x, (*specs[:4], STATE, specs[4], TENSOR, STATE), strict=True))
        )
        sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(TENSOR, STATE))
        run = jax.jit(lambda x: _grads(lambda q, k, v: sharded(q, k, v, x.slope, x.segment_ids), x))
        if implementation == "xla":
            got = run(x)
        else:
            # A CPU mesh, and the interpreter below: only the question "is this a TPU" is answered for it.
            monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
            with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
                got = run(x)
    _close(got, wanted)


def _local(q, k, v, slope, segment_ids, *, implementation):
    return lightning_attention(q, k, v, slope, segment_ids=segment_ids, implementation=implementation)


def test_lightning_gradient_of_replicated_queries_is_summed_over_their_copies():
    """q, k, v are the same on all shards of "data", the states are not: the rule's gradient varies, q's must not."""
    x = _case()
    mesh = _mesh(AxisType.Auto)
    whole = PartitionSpec(None, None, "tensor")

    def local(q, k, v, slope, state):
        out, _ = lightning_attention(q, k, v, slope, state)
        return out[None]

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole,) * 3 + (PartitionSpec("tensor"), STATE),
        out_specs=PartitionSpec("data", None, None, "tensor"),
    )
    states = jnp.concatenate([x.state[:1], x.state[1:]])
    q, k, v, d_out = (a[:1] for a in (x.q, x.k, x.v, x.d_out))

    def serial(q, k, v):
        return jnp.stack([lightning_attention(q, k, v, x.slope, s[None])[0] for s in states])

    d_out = jnp.stack([d_out, 2 * d_out])
    got, pull_got = jax.vjp(lambda q, k, v: sharded(q, k, v, x.slope, states), q, k, v)
    wanted, pull_wanted = jax.vjp(serial, q, k, v)
    _close((got, pull_got(d_out)), (wanted, pull_wanted(d_out)))


@pytest.mark.parametrize("implementation", ["xla", "tpu"])
def test_lightning_step_over_data_and_heads_equals_one_device(implementation, monkeypatch):
    x = _case(1)
    q, k, v = (a[:, 0] for a in (x.q, x.k, x.v))
    active = jnp.array([True, False])
    wanted = lightning_attention_step(q, k, v, x.slope, x.state, active_B=active)
    local = functools.partial(lightning_attention_step, implementation=implementation)
    token, data = PartitionSpec("data", "tensor"), PartitionSpec("data")
    sharded = jax.shard_map(
        lambda q, k, v, slope, state, active: local(q, k, v, slope, state, active_B=active),
        mesh=_mesh(AxisType.Auto),
        in_specs=(token, token, token, PartitionSpec("tensor"), STATE, data),
        out_specs=(token, STATE),
    )
    if implementation == "tpu":
        monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        _close(jax.jit(sharded)(q, k, v, x.slope, x.state, active), wanted)


def _put(mesh, array, spec):
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
