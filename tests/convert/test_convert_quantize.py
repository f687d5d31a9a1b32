"""`mm01-convert quantize`, and `load(quantize=)`: the same digits, any mesh, a report, refusals in one line."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from mm01_jax import sharding
from mm01_jax.checkpoint import ArrayWriter, CheckpointError, Checkpoints, leaf_paths, open_checkpoint
from mm01_jax.config import ConfigError, MeshConfig, VisionConfig, command_line, fields, rules, saved
from mm01_jax.convert import __main__ as convert
from mm01_jax.convert import int8_layers, quantize
from mm01_jax.convert.int8 import matrices
from mm01_jax.loading import load
from mm01_jax.model.multimodal import VLModel
from tests import small

VISION = VisionConfig(
    embed_dim=16, num_layers=2, num_heads=2, mlp_dim=24, image_size=8, patch_size=4, grids=((1, 1),), image_token=300
)
QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A step of a run of random weights."""
    folder = tmp_path_factory.mktemp("run")
    config = small.config(compute__param_dtype="bfloat16", model__num_kv_heads=2)
    with small.one_device():
        model = small.model(small.Variant(config.model, config.compute))
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    return folder


@pytest.fixture(scope="module")
def int8(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    arguments = ["quantize", f"--source={run}", f"--target={folder / 'made'}", f"--report={folder / 'report.json'}"]
    assert convert.main([*arguments, "--format=int8_attention", "--tokens=32"]) == 0
    quantize.quantize(run, folder / "experts", **QUIET)
    return folder


def equal(model, other) -> bool:
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all() for a, b in pairs)


def test_a_quantised_checkpoint_has_the_digits_of_quantising_at_load(run, int8):
    for form, made in (("int8", "experts"), ("int8_attention", "made")):
        at_load = load(run, quantize=form)
        assert at_load.config.compute.quantize == form
        assert equal(at_load.model, load(int8 / made).model)


def test_int8_tensors_take_half_and_router_norms_head_and_embedding_stay(run, int8):
    stored, floats = (open_checkpoint(path).leaves for path in (int8 / "experts", run))
    config = load(int8 / "experts").config
    names = matrices(config)
    assert {name.rpartition("/")[2] for name in names} == {"gate", "up", "down"}
    assert len({name.rpartition("/")[2] for name in matrices(quantize.with_int8(config, "int8_attention"))}) > 3

    def nbytes(path):
        return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for p, x in stored.items() if p.startswith(path))

    for name in names:  # scales weigh more here than in a model whose columns are thousands long
        values = int(np.prod(floats[name].shape))
        assert nbytes(f"{name}/values") == values and nbytes(f"{name}/scale") == 4 * values // floats[name].shape[-2]
    assert {path for path in floats if path not in stored} == set(names)
    for path in floats.keys() - set(names):
        assert (stored[path].lanes == floats[path].lanes).all(), path


def test_report_has_every_matrix_and_routers_that_agree_on_equal_inputs(int8):
    report = json.loads((int8 / "report.json").read_text())
    assert {x["leaf"].rpartition("/")[2] for x in report["matrices"]} >= {"gate", "up", "down", "qkv", "query", "out"}
    assert all(0 < x["relative"] < 0.02 for x in report["matrices"])
    assert [layer["output"] < 0.05 for layer in report["layers"]] == [True] * small.MODEL.num_layers


def test_a_model_that_sees_has_a_report_of_its_text(tmp_path):
    config = dataclasses.replace(small.config(), vision=VISION)
    parts = config.model, config.compute, MeshConfig().rules, config.vision
    with small.one_device():
        model = small.unoptimised(lambda key: VLModel(*parts, rngs=nnx.Rngs(key)))(jax.random.key(0))
        with Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    report = tmp_path / "report.json"
    arguments = [f"--source={tmp_path / 'run'}", f"--target={tmp_path / 'made'}", f"--report={report}", "--tokens=8"]
    assert convert.main(["quantize", *arguments]) == 0
    assert len(json.loads(report.read_text())["layers"]) == small.MODEL.num_layers


def test_routers_decide_alike_on_equal_inputs(run, int8):
    models = [load(path, dtype="float32").model for path in (run, int8 / "experts")]
    ids = np.random.default_rng(1).integers(0, 300, (1, 48)).astype(np.int32)
    assert [layer.same_inputs for layer in int8_layers.compare(*models, ids)] == [1.0] * small.MODEL.num_layers


@pytest.mark.parametrize("mesh", ["expert=2,tensor=2", "data=2"])
def test_a_mesh_gives_what_one_device_does(run, mesh):
    ids = np.random.default_rng(1).integers(0, 300, (2, 16)).astype(np.int32)
    places = np.broadcast_to(np.arange(16, dtype=np.int32), ids.shape)

    def logits(mesh):
        model = load(run, mesh, dtype="float32", quantize="int8_attention").model
        with jax.set_mesh(sharding.mesh_of(model)):
            return np.asarray(small.unoptimised(type(model).__call__)(model, ids, places, np.zeros_like(ids)))

    alone = logits(None)
    assert np.abs(logits(mesh) - alone).max() <= 1e-5 * np.abs(alone).max()


def hostile(int8, folder, change) -> None:
    """The checkpoint with another scale of the first layer's gates, its digests right."""
    source = open_checkpoint(int8 / "experts")
    leaves = {path: [leaf.shape, leaf.dtype, leaf.stack] for path, leaf in source.leaves.items()}
    name = next(path for path in leaves if path.endswith("experts/gate/scale"))
    chunks = {(path, i): source.read(path, i) for path, x in leaves.items() for i in np.ndindex(x[0][: x[2]])}
    chunks = {key: change(chunk) if key[0] == name else chunk for key, chunk in chunks.items()}
    for path, index in chunks:
        leaves[path][0] = (*leaves[path][0][: len(index)], *chunks[path, index].shape)
        leaves[path][1] = chunks[path, index].dtype.name
    with ArrayWriter(folder, {path: tuple(spec) for path, spec in leaves.items()}) as writer:
        for (path, index), chunk in chunks.items():
            writer.write(path, index, chunk)
        writer.finish(source.config_json)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("NaN", lambda scale: scale * np.nan, "weights that are not finite: .*experts/gate/scale"),
        ("infinity", lambda scale: scale + np.inf, "weights that are not finite: .*experts/gate/scale"),
        ("negative", lambda scale: -scale, "scales below 0, .*: [^ ]*experts/gate/scale$"),
        ("one for all", lambda scale: scale[:1], r"experts/gate/scale: stored float32\[.*\], wanted float32\["),
        ("another dtype", lambda scale: scale.astype(np.int8), r"experts/gate/scale: stored int8\["),
        ("of each number", lambda scale: np.stack([scale] * 5), r"experts/gate/scale: stored float32\[.*\], wanted"),
        ("a column too few", lambda scale: scale[:-1], r"experts/gate/scale: stored float32\[.*\], wanted float32\["),
    ],
)
def test_hostile_scales_are_refused_by_name(int8, tmp_path, kind, change, said):
    hostile(int8, tmp_path / "bad", change)
    with pytest.raises((CheckpointError, ValueError), match=said) as refused:
        load(tmp_path / "bad")
    assert "\n" not in str(refused.value), kind


def saved_with(run, folder, change) -> pathlib.Path:
    """A run of its own, whose model is changed in place."""
    with small.one_device():
        loaded = load(run)
        change(loaded.model)
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(1, {"model": loaded.model}, {"config": json.loads(saved.to_json(loaded.config))})
    return folder


def put(leaf, index, value) -> None:
    leaf[...] = leaf[...].at[index].set(value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: put(model.stacks[0].experts.gate, (0, 0, 1, 2, 3), np.nan), "experts/gate.* have no int8"),
        (lambda model: put(model.embed, (5, 3), np.nan), "embed.*: values that are not finite as float32"),
        (lambda model: put(model.final_norm, 3, -np.inf), "final_norm.*: values that are not finite as float32"),
    ],
    ids=["a matrix", "the embedding", "a norm"],
)
def test_a_number_that_is_none_is_refused_by_the_leaf_it_stands_in(run, tmp_path, change, said):
    source = saved_with(run, tmp_path / "run", change)
    with pytest.raises(CheckpointError, match=said) as refused:
        quantize.quantize(source, tmp_path / "made", **QUIET)
    assert "\n" not in str(refused.value) and not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("error")
def test_errors_of_the_largest_and_smallest_numbers_are_numbers(run, tmp_path):
    """Squares of a matrix of 3e38 overflow in float32, those of 1e-30 vanish."""

    def change(model):
        gate = model.stacks[0].experts.gate
        gate[...] = gate[...].at[0, 0, 0].set(3e38).at[0, 0, 1].multiply(1e-30)

    errors = quantize.quantize(saved_with(run, tmp_path / "run", change), tmp_path / "made", **QUIET)
    assert all(0 <= error.relative < 0.02 for error in errors)
    assert sum(error.relative > 0.001 for error in errors) >= len(errors) - 1


def test_what_cannot_be_quantised_is_refused_in_a_line(run, int8, tmp_path, capsys):
    cases = [
        (["quantize", f"--source={int8 / 'made'}", f"--target={tmp_path / 'x'}"], "int8_attention already"),
        (["quantize", f"--source={run}", f"--target={tmp_path / 'x'}", "--format=int4"], "int8, int8_attention"),
        (["to-torch", f"--source={int8 / 'made'}", f"--target={tmp_path / 'x'}"], "checkpoint of floats"),
    ]
    for arguments, said in cases:
        assert convert.main(arguments) in (2, 3)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0], lines
    with pytest.raises(ValueError, match="are int8 already; leave it out"):
        load(int8 / "experts", quantize="int8")
    with pytest.raises(ConfigError, match="got 'int9'; allowed: int8, int8_attention or None; nearest: int8"):
        load(run, quantize="int9")


def test_training_of_int8_is_refused():
    config = fields.replace(command_line.load_config("configs/tiny.py"), "compute.quantize", "int8")
    [problem] = rules.training_problems(config)
    assert problem.key == "compute.quantize" and re.search("no gradient", problem.allowed)


def test_every_leaf_of_the_model_is_in_the_checkpoint(int8):
    model = load(int8 / "made").model
    assert set(leaf_paths(model)) == set(open_checkpoint(int8 / "made").leaves)
