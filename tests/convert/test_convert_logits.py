"""`logits` computes the released model: the fixture's numbers, and those of the JAX model, from any directory."""

import tracemalloc

import jax
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.checkpoint import CheckpointError
from mm01_jax.config import MeshConfig
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.certify import logits
from mm01_jax.convert.certify.forward import Forward
from mm01_jax.convert.certify.walk import Weights, walk
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import open_source
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.inference import logits as whole
from mm01_jax.loading import load_model
from tests import small
from tests.convert import samples
from tests.reference import fixture
from tests.reference.model import forward
from tests.reference.test_reference_fixture import BOUND, assert_reproduces_fixture, relative_error
from tests.slow import slow_but

QUIET = {"log": lambda line: None}
IDS = np.random.default_rng(0).integers(0, samples.CONFIG.vocab_size, (2, 21))


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The fixture as released files, as our checkpoint, and exported again."""
    room = tmp_path_factory.mktemp("logits")
    samples.write(room / "in", samples.settings("original", fixture.CONFIG, "float32"), fixture.weights())
    from_torch(room / "in", room / "ours", **QUIET)
    to_torch(room / "ours", room / "out", shard_bytes=200_000, **QUIET)
    return room


@pytest.fixture
def cheap_programs(monkeypatch):
    monkeypatch.setattr(whole, "_take_in", small.unoptimised(whole._take_in.__wrapped__, donate_argnums=1))


@pytest.mark.parametrize("directory", ["out", "ours"])
def test_exported_directory_and_checkpoint_reproduce_the_fixture(directory, room):
    found = logits.compute(room / directory, fixture.load()["ids"])
    assert_reproduces_fixture(found["logits"][0], [found[f"state_{layer}"] for layer in range(7)])


@pytest.mark.parametrize("mesh", slow_but(("expert=2,sequence=2",), ("data=1", "expert=2,sequence=2", "data=4")))
def test_the_model_on_a_mesh_reproduces_the_fixture(mesh, room, tmp_path, cheap_programs):
    np.save(tmp_path / "ids.npy", fixture.load()["ids"])
    words = [f"--source={room / 'ours'}", f"--ids={tmp_path / 'ids.npy'}", f"--out={tmp_path / 'out.npz'}"]
    assert main(["logits", *words, f"--mesh={mesh}"]) == 0
    found = np.load(tmp_path / "out.npz")
    assert {array.dtype for name, array in found.items() if name != "ids"} == {np.dtype("float32")}
    assert_reproduces_fixture(found["logits"][0], [found[f"state_{layer}"] for layer in range(7)])


def test_rows_and_positions_may_be_any_number(monkeypatch, tmp_path, cheap_programs):
    """Three rows of 21 over two shards of either, in chunks of eight positions: as the NumPy walk."""
    monkeypatch.setattr(whole, "CHUNK", 4)
    source = samples.make(tmp_path / "in")
    ids = np.concatenate([IDS, IDS[:1]])
    found = whole.logits_and_states(load_model(source, mesh="data=2,sequence=2", dtype="float32"), ids)
    want = logits.compute(source, ids)
    assert found.keys() | {"ids"} == want.keys()
    for name, array in found.items():
        assert relative_error(array, want[name]) < BOUND


def test_float64_walk_is_the_reference(room):
    ids = fixture.load()["ids"][:, :40]
    source = open_source(room / "in")
    want = forward(fixture.CONFIG, fixture.weights(), ids)
    found = {
        (kind, layer): array
        for kind, layer, _, array in walk(Weights(source), ids, {"": Forward(source.config.model, "float64")})
    }
    np.testing.assert_allclose(found["logits", None], want.logits_BSV, rtol=1e-9, atol=1e-11)
    for layer, state in enumerate(want.states):
        np.testing.assert_allclose(found["state", layer], state, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dialect", ["original", "native", "vl-01"])  # m1 has the tensors of original
def test_every_dialect_and_its_conversion_give_the_logits_of_the_jax_model(dialect, tmp_path):
    source = samples.make(tmp_path / "in", dialect)
    from_torch(source, tmp_path / "ours", **QUIET)
    found = [logits.compute(path, IDS)["logits"] for path in (source, tmp_path / "ours")]
    np.testing.assert_array_equal(*found)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    model = load_model(source, mesh=mesh, dtype="float32")
    model = model.text if dialect == "vl-01" else model
    positions = np.broadcast_to(np.arange(IDS.shape[1], dtype=np.int32), IDS.shape)
    with jax.set_mesh(mesh):
        want = jax.jit(lambda model, *batch: model(*batch))(
            model, IDS.astype(np.int32), positions, np.zeros_like(positions)
        )
    assert relative_error(found[0], np.asarray(want)) < BOUND


def test_weights_and_arrays_that_are_not_finite_are_refused_by_name(tmp_path, capsys):
    source = samples.make(tmp_path / "in")
    shard = max(source.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\xff" * 4)
    np.save(tmp_path / "ids.npy", IDS)
    words = [f"--source={source}", f"--ids={tmp_path / 'ids.npy'}"]
    assert main(["logits", *words, f"--out={tmp_path / 'out.npz'}"]) == 3
    assert main(["certify", *words, f"--against={source}"]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(f"{shard}: tensor " in line and "are not finite, first" in line for line in said)
    assert not (tmp_path / "out.npz").exists()
    model = samples.CONFIG
    np.savez(tmp_path / "it.npz", ids=IDS, logits=np.full((*IDS.shape, model.vocab_size), np.nan, np.float32))
    sound = samples.make(tmp_path / "sound")
    assert main(["certify", f"--source={sound}", f"--against={tmp_path / 'it.npz'}"]) == 3
    assert f"it.npz: logits has {IDS.size * model.vocab_size:,} values that are not finite" in capsys.readouterr().err


def test_arrays_that_are_none_or_very_much_larger_than_their_file_are_refused(tmp_path):
    bomb, holes, odd = tmp_path / "bomb.npz", tmp_path / "holes.npy", tmp_path / "odd.npz"
    np.savez_compressed(bomb, logits=np.zeros(12 << 20))
    with open(holes, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (1 << 30,)})
        file.truncate(file.tell() + (8 << 30))
    np.savez(odd, ids=IDS)
    raw = odd.read_bytes()
    for head, at in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):  # where a ZIP says how a member is compressed
        place = raw.index(head) + at
        raw = raw[:place] + b"\x63\x00" + raw[place + 2 :]
    odd.write_bytes(raw)
    tracemalloc.start()
    for path, said in ((bomb, "takes 100,663,"), (holes, "takes 8,589,934,"), (odd, "compression method")):
        with pytest.raises(CheckpointError, match=f"^{path}: .*{said}"):
            logits.read_arrays(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
