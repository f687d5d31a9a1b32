"""`check` and `inspect`: a checkpoint against digests, a manifest, another checkpoint; all that is found is named."""

import pathlib
import shutil

import numpy as np
import pytest

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.convert import table
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.check import check, inspect
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import open_source
from mm01_jax.convert.to_torch import to_torch
from tests.convert import samples

QUIET = {"log": lambda line: None}
NORM = "model.layers.4.post_attention_layernorm.weight"


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> pathlib.Path:
    """A source, our checkpoint of it, that exported to native, and the checkpoint's manifest alone."""
    room = tmp_path_factory.mktemp("check")
    from_torch(samples.make(room / "in"), room / "ours", **QUIET)
    to_torch(room / "ours", room / "native", dialect="native", **QUIET)
    shutil.copy(room / "ours" / "state" / "manifest.json", room / "manifest.json")
    return room


def changed(room: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """The source with one bit of one tensor flipped."""
    found = samples.tensors("original")
    found[NORM].view(np.uint16)[3] ^= 1
    return samples.write(target, samples.settings("original"), found)


@pytest.mark.parametrize("against", ["in", "ours", "native", "manifest.json", "native/sha256.json"])
@pytest.mark.parametrize("source", ["in", "ours", "native"])
def test_conversions_of_one_source_agree_whichever_is_compared_with_which(source, against, room):
    check(room / source, room / against, **QUIET)


@pytest.mark.parametrize("against", ["in", "ours", "native", "manifest.json", "native/sha256.json"])
@pytest.mark.parametrize("converted", [False, True])
def test_one_flipped_bit_is_named_whatever_it_is_compared_with(converted, against, room, tmp_path):
    source = changed(room, tmp_path / "in")
    if converted:
        from_torch(source, tmp_path / "ours", **QUIET)
        source = tmp_path / "ours"
    with pytest.raises(CheckpointError, match="1 difference") as error:
        check(source, room / against, **QUIET)
    assert NORM in str(error.value)


def test_float32_tensors_among_bfloat16_are_compared_with_a_manifest_alone(tmp_path):
    found = samples.tensors("original")
    found[NORM] = found[NORM].astype(np.float32)
    source = samples.write(tmp_path / "in", samples.settings("original"), found)
    from_torch(source, tmp_path / "ours", **QUIET)
    manifest = tmp_path / "ours" / "state" / "manifest.json"
    check(source, manifest, **QUIET)
    found[NORM][3] *= 2
    other = samples.write(tmp_path / "other", samples.settings("original"), found)
    with pytest.raises(CheckpointError, match=f"1 difference:\n.*{NORM}.*: other values than those of the conversion"):
        check(other, manifest, **QUIET)


def test_config_that_changes_the_maths_is_named_against_a_manifest_of_another_dialect(room, tmp_path):
    plain = samples.settings("native") | {"full_attn_alpha_factor": 1.25}
    source = samples.write(tmp_path / "in", plain, samples.tensors("native"))
    with pytest.raises(CheckpointError, match="softmax_alpha=1.25 against 1.5"):
        check(source, room / "manifest.json", **QUIET)


def test_manifest_without_these_tensors_is_refused_by_name(room, tmp_path):
    source = samples.make(tmp_path / "in", "vl-01")
    with pytest.raises(CheckpointError, match="manifest.json: lists no SHA-256 of the tensors of"):
        check(source, room / "manifest.json", **QUIET)


def test_damaged_manifest_is_refused(room, tmp_path):
    raw = bytearray((room / "manifest.json").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match="manifest.json"):
        check(room / "ours", tmp_path / "manifest.json", **QUIET)


def test_values_that_are_not_finite_are_named_in_checkpoints_of_either_kind(tmp_path):
    found = samples.tensors("original")
    found[NORM][5] = np.inf
    source = samples.write(tmp_path / "in", samples.settings("original"), found)
    from_torch(source, tmp_path / "ours", **QUIET)
    for directory in (source, tmp_path / "ours"):
        check(directory, **QUIET)
        with pytest.raises(CheckpointError, match=rf"{NORM}.*1 values are not finite, first \(5,\)"):
            check(directory, check_finite=True, **QUIET)


def test_check_tells_what_is_missing_or_surplus_alike_together_in_a_screen(tmp_path, capsys):
    samples.make(tmp_path / "in", "vl-01")
    samples.make(tmp_path / "text")
    assert main(["check", f"--source={tmp_path / 'in'}", f"--against={tmp_path / 'text'}"]) == 3
    said, message = capsys.readouterr()
    assert said.count("\n") == 1 and message.count("\n") <= 20
    assert "277 differences" in message and "and 69 more" in message
    assert "  24 of missing stacks/*/experts/up [*, *, *], the first missing stacks/0/experts/up [0, 0, 0]\n" in message


def test_check_against_a_list_without_tensors_says_so_in_a_screen(tmp_path, capsys):
    samples.make(tmp_path / "in")
    (tmp_path / "sha256.json").write_text('{"tensors": {}}')
    assert main(["check", f"--source={tmp_path / 'in'}", f"--against={tmp_path / 'sha256.json'}"]) == 3
    said, message = capsys.readouterr()
    assert said.count("\n") == 1 and message.count("\n") <= 20


def test_every_tensor_that_config_and_files_disagree_on_is_named(tmp_path, capsys):
    found = {name.replace("experts.3.", "experts.4."): w for name, w in samples.tensors("original").items()}
    samples.write(tmp_path / "in", samples.settings("original"), found)
    assert main(["check", f"--source={tmp_path / 'in'}"]) == 3
    said = capsys.readouterr().err
    experts = [name for name in samples.tensors("original") if "experts.3." in name]
    assert len(experts) == 18
    alike = "18 of model.layers.*.block_sparse_moe.experts.{0}.w*.weight, the first model.layers.0.block_sparse_moe"
    for word, expert in (("missing", 3), ("surplus", 4)):
        assert f"{word} {alike.format(expert)}.experts.{expert}." in said
    assert said.count(";") == 1 and "\n" not in said.strip()


def test_directory_of_the_other_kind_is_refused_with_the_command_that_reads_it(room, tmp_path, capsys):
    assert main(["to-torch", f"--source={room / 'in'}", f"--target={tmp_path / 'out'}"]) == 3
    assert "a PyTorch directory, which from-torch reads" in capsys.readouterr().err
    assert main(["from-torch", f"--source={room / 'ours'}", f"--target={tmp_path / 'out'}"]) == 3
    assert "a checkpoint of mm01_jax, which to-torch reads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option"),
    [("inspect", "source"), ("to-torch", "source"), ("check", "against"), ("certify", "against"), ("logits", "ids")],
)
def test_path_that_is_not_there_is_a_mistake_in_the_command(command, option, room, tmp_path, capsys):
    paths = {"source": room / "in"} | ({"target": tmp_path / "x"} if command == "to-torch" else {})
    paths |= {"out": tmp_path / "x.npz"} if command == "logits" else {}
    paths[option] = tmp_path / "nowhere"
    assert main([command, *(f"--{name}={path}" for name, path in paths.items())]) == 2
    assert f"--{option}: got '{tmp_path / 'nowhere'}'; allowed: a " in capsys.readouterr().err


def test_inspect_names_dialect_parameters_and_leaves(tmp_path):
    lines = []
    inspect(samples.make(tmp_path / "in", "m1"), log=lines.append)
    elements = sum(map(table.num_elements, open_source(tmp_path / "in").tensors))
    assert "dialect m1" in lines[0] and f"{elements:,} parameters, bfloat16" in lines[1]
    assert any("stacks/0/experts/gate: [2, 2, 4] [16, 12]" in line for line in lines)


def test_check_names_every_chunk_in_which_two_checkpoints_differ(tmp_path):
    weights = samples.tensors("original")
    changed = {name: w.copy() for name, w in weights.items()}
    for name in ("model.norm.weight", "model.layers.4.block_sparse_moe.experts.2.w3.weight"):
        changed[name].reshape(-1)[5] += 1
    samples.write(tmp_path / "one", samples.settings("original"), weights)
    samples.write(tmp_path / "two", samples.settings("original") | {"layernorm_mlp_alpha": 1.0}, changed)
    with pytest.raises(Exception, match="3 differences") as error:
        check(tmp_path / "one", tmp_path / "two", **QUIET)
    said = str(error.value)
    assert "experts_alpha=1.25 against 1.0" in said
    assert "final_norm [] (model.norm.weight): 1 of 16 values differ" in said
    assert "stacks/0/experts/up [1, 1, 2]" in said
