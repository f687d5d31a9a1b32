"""Laws of the transports of the expert exchange. XLA:CPU has no ragged all-to-all; an emulation stands in for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import MESH_AXES, ConfigError, MeshConfig
from mm01_jax.parallel.experts import transports
from mm01_jax.parallel.experts.layer import expert_layer
from mm01_jax.train import transport_check
from tests import small
from tests.parallel.mesh_model import MODEL
from tests.small import Variant

AXES = ("expert",)


def emulated(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What `lax.ragged_all_to_all` says it does, of everything gathered everywhere."""
    del recv_sizes
    rows, starts, sizes, places = (
        lax.all_gather(x, axis_name) for x in (operand, input_offsets, send_sizes, output_offsets)
    )
    me = lax.axis_index(axis_name)
    past = jnp.arange(output.shape[0])[None] - places[:, me][:, None]
    held = (past >= 0) & (past < sizes[:, me][:, None])
    source = jnp.clip(starts[:, me][:, None] + past, 0, operand.shape[0] - 1)
    arrived = jnp.take_along_axis(rows, source[:, :, None], axis=1)
    return jnp.where(held.any(axis=0)[:, None], jnp.sum(jnp.where(held[:, :, None], arrived, 0), axis=0), output)


@pytest.fixture
def with_ragged(monkeypatch):
    monkeypatch.setattr(lax, "ragged_all_to_all", emulated)
    jax.clear_caches()  # traces that hold the real one
    yield monkeypatch
    jax.clear_caches()


def on(**sizes):
    mesh = MeshConfig(**sizes)
    size = mesh.data * mesh.expert * mesh.tensor * mesh.sequence
    return jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:size]))


def layer(exchange: str, mesh: MeshConfig, **model):
    """(y, statistics, gradients) of the expert layer; the router favours some experts."""
    config, compute = Variant(MODEL).replace(exchange=exchange, **model)
    rng = np.random.default_rng(0)
    D, E, F = config.embed_dim, config.num_experts, config.expert_dim
    x = rng.normal(size=(8, 16, D)).astype(np.float32)
    segments = np.where(rng.random((8, 16)) < 0.2, -1, 0).astype(np.int32)
    weights = tuple(rng.normal(size=s).astype(np.float32) for s in ((D, E), (E, D, F), (E, D, F), (E, F, D)))

    def loss(x, weights):
        y, stats = expert_layer(x, segments, weights, config=config, compute=compute, rules=mesh.rules)
        return jnp.sum(y * jnp.cos(y)), (y, stats)

    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    with on(**sizes):
        run = small.unoptimised(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return jax.device_get(run(x, weights))


@pytest.mark.parametrize(
    "mesh, model",
    [
        pytest.param(MeshConfig(expert=4), {}, marks=pytest.mark.slow),
        (MeshConfig(data=2, expert=2, tensor=2), {"exchange_groups": 2}),
        (MeshConfig(expert=4), {"dropless_bound": 1.2}),  # some rows do not fit
        (MeshConfig(expert=2, sequence=2), {"routing": "capacity", "capacity_factor": 0.8}),
    ],
    ids=["expert 4", "all with groups", "overflow", "capacity"],
)
def test_ragged_exchange_gives_the_values_and_gradients_of_padded_to_the_bit(with_ragged, mesh, model):
    jax.tree.map(np.testing.assert_array_equal, layer("ragged", mesh, **model), layer("padded", mesh, **model))


@pytest.mark.parametrize(
    "mesh, model",
    [
        (MeshConfig(data=2, expert=2, tensor=2), {"exchange_groups": 2}),
        (MeshConfig(expert=2, sequence=2), {"routing": "capacity", "capacity_factor": 0.8}),
    ],
    ids=["all with groups", "capacity"],
)
def test_tokens_gathered_by_all_shards_give_what_an_exchange_gives(mesh, model):
    def near(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=3e-4 * np.abs(wanted).max())  # y is large, and in a cosine

    jax.tree.map(near, layer("gathered", mesh, **model), layer("padded", mesh, **model))


def test_gathered_rows_beyond_a_shards_bound_are_counted():
    told = {"dropless_bound": 8.0, "dropless_shard_bound": 0.75}
    (_, (_, stats)), _ = layer("gathered", MeshConfig(expert=2), **told)
    of_shards = stats.assigned.reshape(2, -1).sum(axis=1)
    rows = 0.75 * 8 * 16 * MODEL.num_experts_per_token / 2  # of both shards together
    assert stats.overflow == np.maximum(of_shards - rows, 0).sum() > 0


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_ragged_exchange_and_its_gradient_lower_for(platform):
    with on(expert=4):
        step = jax.jit(jax.value_and_grad(lambda x: jnp.sum(_travelled(x))))
        program = step.trace(jax.ShapeDtypeStruct((16, 8, 128), jnp.bfloat16)).lower(lowering_platforms=(platform,))
    assert program.as_text().count("ragged_all_to_all") >= 2


def _travelled(x):
    def local(x):
        sizes = jnp.full((4,), 3, jnp.int32) + 0 * lax.axis_index("expert")
        return transports.ragged(x, sizes, sizes, AXES)

    return jax.shard_map(local, in_specs=jax.P("expert"), out_specs=jax.P("expert"))(x)


def settled(exchange: str, **mesh):
    said = []
    config = small.config(compute__exchange=exchange, train__batch_size=8, **{f"mesh__{k}": v for k, v in mesh.items()})
    with on(**mesh):
        return transport_check.settle(config, said.append), said


def test_auto_is_padded_where_ragged_does_not_run_and_says_why_once():
    found, (before, after) = settled("auto", expert=2)
    assert found == "padded"
    assert "if nothing follows" in before and "--config.compute.exchange=padded" in before
    assert after.startswith("exchange: padded (ragged does not run: ")


def test_ragged_by_name_is_refused_where_it_does_not_run():
    with pytest.raises(ConfigError, match="compute.exchange: got 'ragged'; allowed: 'auto' or 'padded' .* not run"):
        settled("ragged", expert=2)


def test_nothing_is_tried_where_experts_are_not_cut_or_padded_is_named():
    assert settled("auto", data=2) == ("padded", [])
    assert settled("ragged", data=2) == ("padded", [])
    assert settled("padded", expert=2) == ("padded", [])
    assert settled("gathered", expert=2) == ("gathered", [])


def test_auto_takes_the_faster_of_two_that_are_right(with_ragged):
    for faster in ("padded", "ragged"):
        with_ragged.setattr(transport_check, "timed", lambda name, *_, faster=faster: 1.0 if name == faster else 2.0)
        found, said = settled("auto", expert=2, data=2)
        assert found == faster and said[-1].startswith(f"exchange: {faster} (") and "ms" in said[-1]
    found, said = settled("ragged", expert=2)
    assert found == "ragged" and "right" in said[-1]


@pytest.mark.parametrize("what", ["values", "gradients"])
def test_a_ragged_exchange_that_is_wrong_is_not_used(with_ragged, what):
    @jax.custom_vjp
    def wrong_gradient(x):
        return x

    wrong_gradient.defvjp(lambda x: (x, None), lambda _, d: (d * 2,))

    def wrong(*args, **kwargs):
        out = emulated(*args, **kwargs)
        return jnp.roll(out, 1, axis=0) if what == "values" else wrong_gradient(out)

    with_ragged.setattr(lax, "ragged_all_to_all", wrong)
    found, said = settled("auto", expert=2)
    assert found == "padded" and f"{what} of ragged are not those of padded" in said[-1]


def test_the_timed_exchange_is_as_large_as_training_s_and_runs(with_ragged):
    config = small.config(train__batch_size=8, mesh__expert=2, mesh__tensor=2, compute__exchange_groups=2)
    rows, width, used, dtype = transport_check.training_shape(config)
    assert (rows, width, dtype) == (
        64 * 2,
        8,
        jnp.float32,
    )  # 8 x 32 tokens on 2 x 2 devices in groups, two choices each
    assert used == 0.5
    with on(expert=2, tensor=2):
        for name in ("padded", "ragged"):
            assert transport_check.timed(name, AXES, rows, width, used, dtype) > 0
