"""PyTorch -> ours -> PyTorch keeps every bit: each dialect, each dtype, one device or eight."""

import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from mm01_jax import sharding
from mm01_jax.checkpoint import CheckpointError, Checkpoints, leaf_paths
from mm01_jax.config import MESH_AXES, MeshConfig, saved
from mm01_jax.convert import companions
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.check import check
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import open_source
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.convert.torch.settings import read
from mm01_jax.data.tokenizer import bytes_json
from mm01_jax.loading import load_model
from tests.convert import samples

QUIET = {"log": lambda line: None}
SHARD_BYTES = 30_000


def bits(directory) -> dict:
    """Name -> (dtype, shape, bytes) of every tensor."""
    found = {name: w for path in directory.glob("*.safetensors") for name, w in load_file(path).items()}
    return {name: (w.dtype.name, w.shape, w.tobytes()) for name, w in found.items()}


def random_bits(directory, dialect, dtype="bfloat16"):
    return samples.write(directory, samples.settings(dialect, dtype=dtype), samples.random_bits(dialect, dtype))


def is_buffer(name: str) -> bool:
    return name.endswith(("slope_rate", "_decay"))


def same_bits(one: dict, two: dict) -> None:
    """Equal names and bits of all weights; decay buffers are made anew (test_convert_native.py)."""
    weights = [name for name in one if not is_buffer(name)]
    assert sorted(weights) == sorted(name for name in two if not is_buffer(name))
    assert not [name for name in weights if one[name] != two[name]]


def said_again(before: dict, after: dict) -> bool:
    """Whether `after` has every field of `before`, at any depth."""
    return all(
        said_again(value, after[name]) if isinstance(value, dict) else after[name] == value
        for name, value in before.items()
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dialect", samples.DIALECTS)
def test_torch_ours_torch_keeps_every_bit_and_every_field(dialect, dtype, tmp_path):
    source = random_bits(tmp_path / "in", dialect, dtype)
    from_torch(source, tmp_path / "ours", **QUIET)
    to_torch(tmp_path / "ours", tmp_path / "out", shard_bytes=SHARD_BYTES, **QUIET)
    same_bits(bits(source), bits(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    before, after = (json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "out"))
    assert said_again(before, after)
    one, two = (read(plain, "config.json").config for plain in (before, after))
    assert one == two
    check(tmp_path / "out", tmp_path / "ours", **QUIET)


# The quick ones meet each dialect, both meshes of eight and one device.
QUICK = (("original", (2, 2, 2, 1)), ("m1", (1, 2, 2, 2)), ("native", (2, 2, 2, 1)), ("vl-01", (1, 2, 2, 2)))
QUICK += (("vl-01", (1, 1, 1, 1)),)
PLACES = [(dialect, sizes) for dialect in samples.DIALECTS for sizes in ((1, 1, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2))]


@pytest.mark.parametrize(
    ("dialect", "sizes"), [pytest.param(*p, marks=() if p in QUICK else pytest.mark.slow, id=str(p)) for p in PLACES]
)
def test_torch_devices_checkpoint_torch_keeps_every_bit(dialect, sizes, tmp_path):
    source = random_bits(tmp_path / "in", dialect)
    config = MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True)))
    mesh = sharding.make_mesh(config, jax.devices()[: np.prod(sizes)])
    model = load_model(source, mesh=mesh, allow_nonfinite=True)
    if np.prod(sizes) > 1:
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model))
    text = json.loads(saved.to_json(open_source(source).config))
    with Checkpoints(tmp_path / "run") as steps:
        steps.save(7, {"model": model}, {"config": text})
    to_torch(tmp_path / "run", tmp_path / "out", dialect=dialect, **QUIET)
    same_bits(bits(source), bits(tmp_path / "out"))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 2, 2)], ids=str)
def test_load_model_gives_the_same_arrays_from_either_directory(sizes, tmp_path):
    source = samples.make(tmp_path / "in", "vl-01")
    from_torch(source, tmp_path / "ours", **QUIET)
    config = MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True)))
    mesh = sharding.make_mesh(config, jax.devices()[: np.prod(sizes)])
    models = [load_model(path, mesh=mesh, dtype="float32") for path in (source, tmp_path / "ours")]
    chunks = {(t.leaf, t.index): t for t in open_source(source).tensors}
    for path, *arrays in zip(leaf_paths(models[0]), *map(jax.tree.leaves, models), strict=True):
        assert {array.dtype for array in arrays} == {np.dtype("float32")}
        assert arrays[0].sharding == arrays[1].sharding
        np.testing.assert_array_equal(*map(np.asarray, arrays))
        for (leaf, index), tensor in chunks.items():
            if leaf == path:
                want = open_source(source).read(tensor).astype(np.float32)
                np.testing.assert_array_equal(np.asarray(arrays[0])[index], want)
                break


def test_mesh_that_does_not_divide_the_model_is_refused_by_name(tmp_path):
    source = samples.make(tmp_path / "in")
    mesh = sharding.make_mesh(MeshConfig(expert=8), jax.devices()[:8])
    with pytest.raises(ValueError, match="model.num_experts: got 4; allowed: a multiple of mesh.expert=8"):
        load_model(source, mesh=mesh)


def test_casting_rounds_to_nearest_and_back_is_exact(tmp_path):
    source = samples.make(tmp_path / "in", dtype="float32")
    from_torch(source, tmp_path / "ours", dtype="bfloat16", **QUIET)
    to_torch(tmp_path / "ours", tmp_path / "out", dtype="float32", **QUIET)
    weights = samples.tensors("original", dtype="float32")
    want = {name: w.astype("bfloat16").astype(np.float32) for name, w in weights.items()}
    assert {name: w[2] for name, w in bits(tmp_path / "out").items()} == {n: w.tobytes() for n, w in want.items()}


def test_text_weights_change_dialect_and_come_back(tmp_path):
    source = random_bits(tmp_path / "in", "original")
    from_torch(source, tmp_path / "ours", **QUIET)
    to_torch(tmp_path / "ours", tmp_path / "native", dialect="native", **QUIET)
    assert json.loads((tmp_path / "native" / "config.json").read_text())["model_type"] == "minimax"
    from_torch(tmp_path / "native", tmp_path / "again", **QUIET)
    to_torch(tmp_path / "again", tmp_path / "out", dialect="original", **QUIET)
    same_bits(bits(source), bits(tmp_path / "out"))
    check(tmp_path / "again", tmp_path / "ours", **QUIET)


def test_vision_weights_refuse_a_dialect_without_vision(tmp_path):
    from_torch(samples.make(tmp_path / "in", "vl-01"), tmp_path / "ours", **QUIET)
    with pytest.raises(ValueError, match="holds vision weights; only vl-01 keeps them"):
        to_torch(tmp_path / "ours", tmp_path / "out", dialect="original", **QUIET)
    assert not (tmp_path / "out").exists()


def test_config_of_a_sharded_index_counts_its_bytes(tmp_path):
    from_torch(samples.make(tmp_path / "in"), tmp_path / "ours", **QUIET)
    to_torch(tmp_path / "ours", tmp_path / "out", shard_bytes=SHARD_BYTES, **QUIET)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(w[2]) for w in bits(tmp_path / "out").values())
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert max(sizes) <= SHARD_BYTES  # with their headers


def test_dry_run_says_tensors_bytes_and_disk_and_writes_nothing(tmp_path, capsys):
    source = samples.make(tmp_path / "in", "native")
    assert main(["from-torch", f"--source={source}", f"--target={tmp_path / 'out'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "117 tensors, 57.8 kB in, 57.8 kB out" in said and "free at" in said and "16 decay buffers" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_target_that_exists_is_a_user_error(tmp_path, capsys):
    source = samples.make(tmp_path / "in")
    (tmp_path / "out").mkdir()
    assert main(["from-torch", f"--source={source}", f"--target={tmp_path / 'out'}"]) == 2
    assert "exists already" in capsys.readouterr().err


UNFIT = {
    "is a FIFO": os.mkfifo,
    "is a directory": lambda path: path.mkdir(),
    "missing": lambda path: path.symlink_to("nowhere"),
    "a link out": lambda path: path.symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("name", companions.NAMES)
@pytest.mark.parametrize("unfit", UNFIT)
def test_what_should_come_along_and_cannot_is_refused_before_anything_is_written(unfit, name, tmp_path, capsys):
    source = samples.make(tmp_path / "in")
    UNFIT[unfit](source / name)
    for task in ("from-torch", "quantize"):
        assert main([task, f"--source={source}", f"--target={tmp_path / 'out'}"]) == 3
        assert f"{source / name}: {unfit}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("content", ['{"private_key": "TOP"}', "TOP"])
def test_what_a_config_names_and_is_no_tokenizer_does_not_go_into_an_export(content, tmp_path):
    """A stranger's run may name any file of the machine that converts it."""
    pytest.importorskip("tokenizers")
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text(content)
    said = companions.export(tmp_path / "source", tmp_path / "target", str(secret))
    assert "no tokenizer.json came along" in said and str(secret) in said and "TOP" not in said
    assert not list((tmp_path / "target").iterdir())
    secret.write_text(json.dumps(bytes_json()))
    said = companions.export(tmp_path / "source", tmp_path / "target", str(secret))
    assert said == f"tokenizer.json is a copy of '{secret}', which the config of the run names"
    assert json.loads((tmp_path / "target" / "tokenizer.json").read_text()) == bytes_json()


def test_a_tokenizer_that_the_weights_were_not_trained_with_does_not_go_into_an_export(tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    named, beside = tmp_path / "named.json", tmp_path / "source" / "tokenizer.json"
    named.write_text(json.dumps(bytes_json()))
    said = companions.export(tmp_path / "source", tmp_path / "target", str(named), "0" * 64)
    assert "named.json' is not the one that the weights were trained with" in said
    assert not list((tmp_path / "target").iterdir())
    named.rename(beside)
    with pytest.raises(CheckpointError, match=f"{beside}: is bytes-257, and the weights were trained with 0000"):
        companions.check(tmp_path / "source", "0" * 64)
    companions.check(tmp_path / "source", "bytes-257")


def test_no_room_on_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match="58.9 kB needed, 1.0 kB free"):
        from_torch(samples.make(tmp_path / "in"), tmp_path / "out", **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_float16_weights_come_in_only_by_a_stated_cast(tmp_path):
    source = samples.write(
        tmp_path / "in", samples.settings("original", dtype="float16"), samples.tensors("original", dtype="float16")
    )
    with pytest.raises(ValueError, match="the weights are float16; choose --dtype=bfloat16 or --dtype=float32"):
        from_torch(source, tmp_path / "ours", **QUIET)
    with pytest.raises(ValueError, match="the weights are float16; choose 'bfloat16' or 'float32'"):
        load_model(source)
    from_torch(source, tmp_path / "ours", dtype="float32", **QUIET)
    tensor = open_source(source).tensors[0]
    np.testing.assert_array_equal(open_source(tmp_path / "ours").read(tensor), open_source(source).read(tensor))
