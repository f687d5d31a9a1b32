"""Laws of the expert layer on a mesh: who is dropped, what a bounded buffer may do, what a moved row's gradient is."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.config import MESH_AXES, MeshConfig
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.experts import layer, router
from mm01_jax.parallel.experts.layer import expert_layer
from mm01_jax.parallel.experts.rows import move_rows, permutation_by
from pallas_kernels.expert_ffn import expert_ffn
from tests.parallel.mesh_model import MODEL
from tests.reference.experts import within_capacity
from tests.slow import slow_but
from tests.small import COMPUTE, Variant

ROWS, LENGTH, E, A = 8, 16, MODEL.num_experts, MODEL.num_experts_per_token
MESHES = [
    MeshConfig(**sizes)
    for sizes in (
        {},
        {"data": 4},
        {"expert": 4},
        {"tensor": 2},
        {"sequence": 8},
        {"data": 2, "expert": 2},
        {"data": 2, "sequence": 2},
        {"expert": 2, "sequence": 4},
        {"data": 2, "expert": 2, "sequence": 2},
        {"data": 2, "expert": 2, "tensor": 2},
    )
]


def sizes_of(value) -> str:
    """A test's name: the axes above 1."""
    if not isinstance(value, MeshConfig):
        return str(value)
    sizes = {axis: getattr(value, axis) for axis in MESH_AXES}
    return "-".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "one"


def on(mesh: MeshConfig):
    size = mesh.data * mesh.expert * mesh.tensor * mesh.sequence
    return jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:size]))


def kept_on(mesh: MeshConfig, variant: Variant, choice_BSA):
    """Which assignments `keep_first` lets stand."""
    tokens = sharding.spec(mesh.rules, "batch", "seq", None)
    order = sequence_layout.order(LENGTH, mesh, variant.compute.sequence_layout)

    def local(choice):
        kept = router.keep_first(
            choice.reshape(-1, A), choice.shape[:2], variant.config, mesh.rules, variant.compute.sequence_layout
        )
        return kept.reshape(choice.shape)

    with on(mesh):
        kept = jax.jit(jax.shard_map(local, in_specs=tokens, out_specs=tokens))(choice_BSA[:, order])
        return np.asarray(kept)[:, np.argsort(order)] < E


def random_choice(seed: int):
    """Choices of an uneven router, padding (E) included."""
    rng = np.random.default_rng(seed)
    popularity = rng.dirichlet(np.full(E, 0.5))
    logits = np.log(popularity + 1e-9) + rng.gumbel(size=(ROWS, LENGTH, E))
    choice = np.argsort(-logits, axis=-1)[..., :A].astype(np.int32)
    return np.where(rng.random((ROWS, LENGTH, 1)) < 0.2, E, choice).astype(np.int32)


def first_within(choice_BSA, limit: int):
    """The oracle, one assignment after the other."""
    flat = choice_BSA.reshape(-1, A)
    return within_capacity(flat, flat[:, 0] < E, E, limit).reshape(choice_BSA.shape)


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("mesh", MESHES, ids=sizes_of)
def test_global_capacity_keeps_the_first_of_the_whole_batch_on_every_mesh(mesh, order):
    variant = Variant(MODEL).replace(routing="capacity", capacity_factor=0.9, sequence_layout=order)
    choice = random_choice(1)
    kept = kept_on(mesh, variant, choice)
    limit = math.ceil(0.9 * choice.size / E)
    np.testing.assert_array_equal(kept, first_within(choice, limit))
    assert 0 < kept.sum() < (choice < E).sum()


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("mesh", MESHES, ids=sizes_of)
def test_expert_group_capacity_is_the_same_rule_within_each_group(mesh, order):
    variant = Variant(MODEL).replace(
        routing="capacity", capacity_factor=0.9, capacity_scope="expert_group", sequence_layout=order
    )
    choice = random_choice(2)
    want = np.zeros(choice.shape, bool)
    limit = math.ceil(0.9 * choice.size / (mesh.data * mesh.sequence) / E)
    for rows in np.split(np.arange(ROWS), mesh.data):
        for columns in np.split(sequence_layout.order(LENGTH, mesh, order), mesh.sequence):
            group = np.ix_(rows, np.sort(columns))
            want[group] = first_within(choice[group], limit)
    np.testing.assert_array_equal(kept_on(mesh, variant, choice), want)


@functools.cache
def compiled_layer(mesh: MeshConfig, variant: Variant):
    with on(mesh):
        return jax.jit(functools.partial(expert_layer, **variant._asdict(), rules=mesh.rules))


def run_layer(mesh: MeshConfig, variant: Variant, x, router_DE, segments):
    rng = np.random.default_rng(0)
    D, F = MODEL.embed_dim, MODEL.expert_dim
    shapes = ((E, D, F), (E, D, F), (E, F, D))
    weights = tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
    with on(mesh):
        y, stats = compiled_layer(mesh, variant)(x, segments, (router_DE, *weights))
    return np.asarray(y), jax.tree.map(np.asarray, stats)


@pytest.mark.parametrize(
    "mesh, groups, bound",
    [(MeshConfig(), 1, 1.6), (MeshConfig(expert=4), 1, 1.8), (MeshConfig(data=2, expert=2, tensor=2), 2, 2.5)],
    ids=sizes_of,
)
def test_bounded_routing_is_exact_where_it_fits_and_reported_where_it_does_not(mesh, groups, bound):
    bounded = Variant(MODEL).replace(dropless_bound=bound, exchange_groups=groups)
    unbounded = bounded.replace(dropless_bound=None)
    outcomes = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(ROWS, LENGTH, MODEL.embed_dim)).astype(np.float32)
        x[..., 0] = 1.0  # the router's row 0 is a bias that makes some experts popular
        router_DE = (rng.normal(size=(MODEL.embed_dim, E)) * 0.3).astype(np.float32)
        router_DE[0] = rng.normal(size=E) * (seed % 4) * 0.5
        segments = np.where(rng.random((ROWS, LENGTH)) < 0.1, -1, 0).astype(np.int32)
        y, stats = run_layer(mesh, bounded, x, router_DE, segments)
        want, free = run_layer(mesh, unbounded, x, router_DE, segments)
        assert free.overflow == 0
        fits = np.array_equal(y, want)
        assert fits == (stats.overflow == 0)
        np.testing.assert_array_equal(stats.assigned, free.assigned)
        outcomes.append(fits)
    assert 5 < sum(outcomes) < 25


FILLED = [MeshConfig(), MeshConfig(expert=4), MeshConfig(data=2, expert=2, tensor=2)]


@pytest.mark.parametrize("mesh", slow_but(FILLED[::2], FILLED), ids=sizes_of)
def test_experts_whose_rows_are_filled_up_to_a_multiple_give_the_same(mesh, monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, LENGTH, MODEL.embed_dim)).astype(np.float32)
    segments = np.where(rng.random((ROWS, LENGTH)) < 0.1, -1, 0).astype(np.int32)
    D, F = MODEL.embed_dim, MODEL.expert_dim
    shapes = (D, E), (E, D, F), (E, D, F), (E, F, D)
    weights = tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def loss(x, weights):
        y, stats = expert_layer(x, segments, weights, config=MODEL, compute=COMPUTE, rules=mesh.rules)
        return jnp.sum(y * y), (y, stats.overflow)

    def run(multiple):
        asked = []

        def rows(*arguments, multiple, **rest):
            asked.append(multiple)
            return expert_ffn(*arguments, multiple=multiple, **rest)

        monkeypatch.setattr(layer, "row_multiple", lambda *_: multiple)
        monkeypatch.setattr(layer, "expert_ffn", rows)
        with on(mesh):
            results = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, weights)
        assert set(asked) == {multiple}
        return results

    one, eight = run(1), run(8)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_moved_rows_and_their_gradient_are_those_of_indexing():
    rng = np.random.default_rng(5)
    T, D = 12, 3
    choice = rng.integers(0, 5, size=(T, 2)).astype(np.int32)
    order, place = permutation_by(jnp.asarray(choice.reshape(-1)), 5)
    np.testing.assert_array_equal(order, np.argsort(choice.reshape(-1), kind="stable"))
    buffer = 18  # the last rows do not fit
    x, d = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((T, D), (buffer, D)))
    source = order[:buffer] // 2
    moved, transpose = jax.vjp(lambda x: move_rows(x, source, place.reshape(T, 2)), x)
    want, want_transpose = jax.vjp(lambda x: x[source], x)
    np.testing.assert_array_equal(moved, want)
    np.testing.assert_allclose(transpose(d)[0], want_transpose(d)[0], rtol=4e-7, atol=4e-7)
