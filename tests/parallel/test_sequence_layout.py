"""Laws of the order of a row over sequence shards, and of the work in softmax attention that it leaves each of them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import MeshConfig, Rules
from mm01_jax.model.decoder import TextModel
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.softmax.stripes import StripeTags, join, pair_is_visible, split
from mm01_jax.sharding import make_mesh
from mm01_jax.train import loop
from mm01_jax.train.metrics_file import read_metrics
from tests import small
from tests.parallel.mesh_model import LENGTH, VARIANT, batch, total_loss
from tests.train import cheap_run


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["contiguous", "zigzag"])
def test_order_places_every_position_once_and_is_none_on_one_shard_or_contiguous(name, shards):
    order = sequence_layout.order(32, MeshConfig(sequence=shards), name)
    np.testing.assert_array_equal(np.sort(order), np.arange(32))
    if shards == 1 or name == "contiguous":
        np.testing.assert_array_equal(order, np.arange(32))


def test_zigzag_shard_holds_one_early_and_one_late_stripe():
    order = sequence_layout.order(8, MeshConfig(sequence=2), "zigzag")
    np.testing.assert_array_equal(order, [0, 1, 6, 7, 2, 3, 4, 5])
    # Two mesh axes in one: the shard's number counts the last of them fastest, as arrays are cut.
    two = MeshConfig(tensor=2, sequence=2, rules=Rules(seq=("tensor", "sequence"), heads=()))
    np.testing.assert_array_equal(sequence_layout.order(8, two, "zigzag"), [0, 7, 1, 6, 2, 5, 3, 4])


def test_a_row_that_stripes_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="12 tokens cannot be cut into 8 stripes"):
        sequence_layout.order(12, MeshConfig(sequence=4), "zigzag")


def test_stripes_of_an_array_joined_are_the_array():
    x = jnp.arange(2 * 12 * 3).reshape(2, 12, 3)
    np.testing.assert_array_equal(join(split(x, 2)), x)


@pytest.mark.parametrize("routing", ["dropless", "capacity"])
def test_zigzag_on_one_sequence_shard_is_the_same_program(routing):
    mesh = MeshConfig(expert=2)
    arrays = batch()

    def program(name: str) -> list:
        variant = VARIANT.replace(routing=routing, sequence_layout=name)
        with jax.set_mesh(make_mesh(mesh, jax.devices()[:2])):
            model = jax.eval_shape(lambda: TextModel(*variant, mesh.rules, rngs=nnx.Rngs(params=0)))
            return list(operations(jax.make_jaxpr(lambda model: total_loss(model, arrays, logits=False)[0])(model)))

    assert program("zigzag") == program("contiguous")


def operations(jaxpr):
    """Primitive, results and constants of every operation, in order; functions that are called are gone into."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = []
        for name, value in sorted(eqn.params.items()):
            parts = value if isinstance(value, tuple | list) else (value,)
            jaxprs = [part for part in parts if hasattr(getattr(part, "jaxpr", part), "eqns")]
            inner += jaxprs or [(name, re.sub(r"0x[0-9a-f]+", "", str(value)))]
        yield eqn.primitive.name, [str(var.aval) for var in eqn.outvars]
        for found in inner:
            if isinstance(found, tuple):
                yield found
            else:
                yield from operations(found)


def computed_pairs(segments_BS: np.ndarray, shards: int, name: str) -> np.ndarray:
    """(queries, keys): which pairs of stripes are computed."""
    stripes = jnp.stack(jnp.split(jnp.asarray(segments_BS), sequence_layout.stripes(shards, name).size, axis=1))
    tags = StripeTags(jnp.zeros_like(stripes), stripes, jnp.arange(stripes.shape[0]))
    against_all = jax.vmap(pair_is_visible, in_axes=(None, 0))
    return np.asarray(jax.vmap(against_all, in_axes=(0, None))(tags, tags))


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_one_document_costs_every_zigzag_shard_the_same_and_half_of_the_square(shards):
    pairs = computed_pairs(np.zeros((1, 64), np.int32), shards, "zigzag")
    of_shards = pairs.sum(axis=1)[sequence_layout.stripes(shards, "zigzag")].sum(axis=1)
    np.testing.assert_array_equal(of_shards, 2 * shards + 1)
    assert sequence_layout.busiest(shards, "zigzag") == (2 * shards + 1) / (4 * shards)
    assert sequence_layout.busiest(shards, "contiguous") == sequence_layout.busiest(1, "zigzag") == 1.0
    assert pairs.sum() / pairs.size == 0.5 + 0.25 / shards
    contiguous = computed_pairs(np.zeros((1, 64), np.int32), shards, "contiguous").sum(axis=1)
    assert contiguous.min() == 1 and contiguous.max() == shards


@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize("name", ["contiguous", "zigzag"])
def test_no_pair_that_sees_anything_is_left_out_and_other_documents_are(row, name):
    pairs = computed_pairs(batch().segments[row : row + 1], 4, name)
    size = LENGTH // len(pairs)
    segments, positions = batch().segments[row], batch().positions[row]
    seen = (segments[:, None] == segments) & (segments >= 0) & (positions <= positions[:, None])
    needed = seen.reshape(len(pairs), size, len(pairs), size).any(axis=(1, 3))
    assert not (needed & ~pairs).any()
    assert (pairs <= np.tri(len(pairs), dtype=bool)).all()
    if (segments < 0).all():
        assert not pairs.any()


def test_packed_documents_leave_out_more_than_causality_does():
    segments = np.repeat(np.arange(8, dtype=np.int32), 8)[None]
    assert computed_pairs(segments, 4, "zigzag").sum() == 8  # each stripe is a document: the diagonal


RUNS = (("one", 1, "contiguous", 4), ("two", 2, "zigzag", 2), ("two", 1, "contiguous", 4))


def run(folder, text, monkeypatch, *, shards: int, order: str, steps: int):
    """What metrics.jsonl holds after so many steps on `shards` devices."""
    devices = jax.devices()[:shards]
    monkeypatch.setattr(jax, "device_count", lambda: len(devices))
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(make_mesh, devices=devices))
    changes = {"mesh__sequence": shards, "compute__sequence_layout": order, "train__steps": steps}
    config = small.config(text, **changes, train__eval_every=2, train__checkpoint_every=2)
    loop.run(config, str(folder), log=lambda _: None)
    return read_metrics(folder)


def test_a_run_in_zigzag_hands_the_step_its_rows_in_that_order_and_goes_on_contiguous(tmp_path, monkeypatch):
    text, seen, found = small.write_text(tmp_path), {}, {}
    cheap_run.use(monkeypatch)
    on_devices = loop._Loop._on_devices

    def noted(self, batch, at):
        placed = on_devices(self, batch, at)
        seen[self.config.mesh.sequence > 1, at] = {
            key: np.asarray(x) for key, x in placed._asdict().items() if x is not None
        }
        return placed

    monkeypatch.setattr(loop._Loop, "_on_devices", noted)
    for name, shards, order, steps in RUNS:
        found[name] = run(tmp_path / name, text, monkeypatch, shards=shards, order=order, steps=steps)
    order = sequence_layout.order(32, MeshConfig(sequence=2), "zigzag")
    assert {at for zigzag, at in seen if zigzag} == {0, 1}
    for at in (0, 1):
        for key, rows in seen[False, at].items():
            np.testing.assert_array_equal(seen[True, at][key], rows[:, order])
    one, two = ([record["loss"] for record in found[name] if "loss" in record] for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)


@pytest.mark.slow
def test_a_run_in_zigzag_has_the_losses_of_one_device_and_goes_on_contiguous(tmp_path, monkeypatch):
    text, found = small.write_text(tmp_path), {}
    quick = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
    monkeypatch.setattr(loop, "compiler_options", lambda platform: quick)
    for name, shards, order, steps in RUNS:
        found[name] = run(tmp_path / name, text, monkeypatch, shards=shards, order=order, steps=steps)
    for key in ("loss", "held_out_loss", "grad_norm"):
        one, two = ([record[key] for record in found[name] if key in record] for name in ("one", "two"))
        assert len(two) == (2 if key == "held_out_loss" else 4)
        np.testing.assert_allclose(two, one, rtol=1e-5)
