"""`load`: what a directory gives, on what it is asked for, and what is refused before any program is made."""

import json

import jax
import numpy as np
import pytest

from mm01_jax import loading, sharding
from mm01_jax.checkpoint import CheckpointError, Checkpoints, finite, leaf_paths, place
from mm01_jax.config import ConfigError, MeshConfig, Rules, saved
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import TorchSource
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.data import tokenizer
from mm01_jax.inference import engine_devices
from mm01_jax.loading import load
from tests import small
from tests.convert import samples
from tests.inference import answering

QUIET = {"log": lambda line: None}


def save(folder, **changes):
    """A step of a run whose weights are 0.01, with what is changed in its config."""
    config = small.config(**changes)
    with small.one_device():
        model = jax.tree.map(lambda x: x * 0 + 0.01, small.model(small.Variant(config.model, config.compute)))
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run as a PyTorch directory, and that as a checkpoint of ours."""
    folder = tmp_path_factory.mktemp("exported")
    to_torch(run, folder / "torch", **QUIET)
    from_torch(folder / "torch", folder / "back", **QUIET)
    return folder


def test_a_byte_level_run_goes_to_torch_and_back_and_is_read_as_bytes(run, exported):
    """Nobody is asked for a tokenizer.json that never was: the export says what its ids are."""
    models = []
    for path in (run, run / "checkpoints" / "00000001", exported / "torch", exported / "back"):
        model, words, config = load(path)
        assert isinstance(words, tokenizer.BytesTokenizer) and config.data.tokenizer == "bytes"
        assert words.decode(words.encode("é")) == "é"
        models.append([np.asarray(x) for x in jax.tree.leaves(model)])
    for other in models[1:]:
        assert all(map(np.array_equal, models[0], other))


def test_the_exported_tokenizer_gives_other_programs_the_same_ids(exported):
    pytest.importorskip("tokenizers")
    theirs = tokenizer.FileTokenizer(str(exported / "torch" / "tokenizer.json"))
    ours = tokenizer.BytesTokenizer()
    assert (theirs.vocab_size, theirs.end_of_document) == (ours.vocab_size, ours.end_of_document)
    text = "def f(x):\n\treturn 'é中\U0001f600'\r\0\x7f\xad\xa0"
    np.testing.assert_array_equal(theirs.encode(text), ours.encode(text))
    assert theirs.decode(ours.encode(text)) == text


def test_a_torch_directory_goes_straight_into_generation(exported, monkeypatch):
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)
    model, words, _ = load(exported / "torch")
    (tokens,) = answering.drawn(model, [words.encode("def")], max_tokens=3, vocab_size=words.vocab_size)
    assert len(tokens) == 3


def test_without_a_tokenizer_the_place_for_it_is_said(tmp_path):
    source = samples.make(tmp_path / "in")
    with pytest.raises(
        ValueError, match=r"in: no tokenizer.json beside the weights, and data.tokenizer='tokenizer.json'"
    ):
        load(source)
    with pytest.raises(ValueError, match="ids up to 256; allowed: below model.vocab_size=32"):
        load(source, tokenizer="bytes")
    assert loading.load_model(source).config.vocab_size == 32


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("datta=2", "mesh: got 'datta=2'; allowed: AXIS=SIZE, of the axes data, expert, tensor, sequence; or auto"),
        ("data=2,data=2", "every axis once"),
        ("data=16", "at most the 8 devices here, not 16; nearest: auto, or data=8"),
        ("expert=8", "mesh.expert: got 8"),
        (MeshConfig(data=3, tensor=3), "at most the 8 devices here, not 9"),
        (7, "a jax mesh with the axes data, expert, tensor, sequence, a MeshConfig, text or None"),
    ],
    ids=str,
)
def test_a_mesh_that_is_none_is_refused_before_a_weight_is_read(run, mesh, said, monkeypatch):
    monkeypatch.setattr(loading.Checkpoint, "restore", None)
    with pytest.raises(ConfigError) as refused:
        load(run, mesh)
    assert said in str(refused.value) or "model.num_experts: got 4; allowed: a multiple of mesh.expert=8" in str(
        refused.value
    )


def test_a_dtype_that_is_none_is_refused_with_the_nearest(run):
    with pytest.raises(ConfigError, match="dtype: got 'float23'; allowed: bfloat16, float32 or None; nearest: float32"):
        load(run, dtype="float23")


def test_a_mesh_comes_as_text_as_sizes_or_as_jax_has_it(run):
    config = MeshConfig(expert=2)
    jax_mesh = sharding.make_mesh(config, jax.devices()[:2])
    for mesh in ("expert=2", config, jax_mesh):
        model, _, found = load(run, mesh)
        assert found.mesh == config and sharding.mesh_of(model) == jax_mesh


def test_the_rules_are_the_run_s_unless_a_mesh_brings_its_own(tmp_path):
    path = save(tmp_path, mesh__rules__kv_heads=())
    assert load(path, "tensor=2").config.mesh == MeshConfig(tensor=2, rules=Rules(kv_heads=()))
    assert load(path, MeshConfig(tensor=2)).config.mesh.rules == Rules(kv_heads=())
    own = Rules(kv_heads=(), vocab=())
    assert load(path, MeshConfig(tensor=2, rules=own)).config.mesh.rules == own


def test_weights_that_are_not_finite_are_refused_by_name_unless_asked_for(tmp_path, monkeypatch):
    found = samples.tensors("original")
    name = next(name for name in found if "layers.3." in name and "experts.2.w1" in name)
    found[name][1, 2] = np.nan
    source = samples.write(tmp_path / "in", samples.settings("original"), found)
    for mesh, few in ((None, finite._FEW_ELEMENTS), ("expert=2", finite._FEW_ELEMENTS), ("expert=2", 0)):
        monkeypatch.setattr(finite, "_FEW_ELEMENTS", few)  # 0: by a program
        with pytest.raises(CheckpointError, match=r"not finite: stacks/0/experts/gate \[1, 0, 2\]; allow_nonfinite"):
            loading.load_model(source, mesh=mesh)
    assert loading.load_model(source, allow_nonfinite=True)


def test_an_answer_has_no_bound_beyond_which_tokens_are_lost(tmp_path):
    path = save(tmp_path, compute__dropless_bound=1.0)
    model, _, config = load(path)
    assert model.compute.dropless_bound is config.compute.dropless_bound is None


def test_a_part_is_read_once_whatever_holds_it_and_no_host_builds_a_leaf(tmp_path, monkeypatch):
    """Largest box, and bytes read of each leaf, on eight devices: a quarter of the experts a device, the rest twice."""
    source, boxes = samples.make(tmp_path / "in"), []
    read_box = TorchSource.read_box

    def counted(self, tensor, bounds):
        found = read_box(self, tensor, bounds)
        boxes.append((tensor.leaf, found.size))
        return found

    monkeypatch.setattr(TorchSource, "read_box", counted)
    model = loading.load_model(source, mesh="data=2,expert=2,tensor=2")
    for leaf in {leaf for leaf, _ in boxes}:
        array = leaf_of(model, leaf)
        assert sum(size for other, size in boxes if other == leaf) == array.size, leaf  # every value once
    largest = []
    sizes = jax.ShapeDtypeStruct((8, 1024), np.float32, sharding=model.embed[...].sharding)
    place(sizes, lambda box: largest.append(np.zeros([s.stop - s.start for s in box], np.float32)) or largest[-1])
    assert max(part.size for part in largest) == 8 * 1024 // 4 and len(largest) == 4


def leaf_of(model, path: str) -> jax.Array:
    return dict(zip(leaf_paths(model), jax.tree.leaves(model), strict=True))[path]
