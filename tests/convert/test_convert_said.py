"""What is said of a PyTorch directory whose small files, names or types are not what they should be."""

import hashlib
import json

import numpy as np
import pytest

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.convert import companions
from mm01_jax.convert.check import check
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import open_source
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.convert.torch import files, header
from mm01_jax.loading import load_model
from tests.convert import samples

QUIET = {"log": lambda line: None}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A directory with a list, and the file and the content of that list."""
    room = tmp_path_factory.mktemp("said")
    from_torch(samples.make(room / "in"), room / "ours", **QUIET)
    to_torch(room / "ours", room / "out", **QUIET)
    (room / "canary").write_text("")
    (room / "out" / "tokenizer.json").write_text("{}")
    (room / "out" / "link").symlink_to(room / "canary")
    return room / "out" / files.SHA256S, json.loads((room / "out" / files.SHA256S).read_text())


def listing(exported, name: str, content: bytes):
    """The directory, whose list has this file, too."""
    path, listed = exported
    more = {name: hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(listed | {"files": listed["files"] | more}))
    return path.parent


UNFIT = {
    "tokenizer.json": r"tokenizer\.json: its file is not the one in sha256\.json",
    "chat_template.jinja": r"sha256\.json: files: got 'chat_template\.jinja'; allowed: names of files",
    "../canary": r"sha256\.json: files: got '\.\./canary'; allowed: names of files",
    "": r"sha256\.json: files: got ''; allowed: names of files",
    "link": r"link: a link out of the directory",
}


@pytest.mark.parametrize("name", UNFIT)
def test_every_file_that_a_list_of_sha256_has_is_compared_and_lies_beside_it(name, exported, tmp_path):
    source = listing(exported, name, b"")
    for read in (lambda: check(source, **QUIET), lambda: from_torch(source, tmp_path / "x", **QUIET)):
        with pytest.raises(CheckpointError, match=UNFIT[name]):
            read()
    with pytest.raises(CheckpointError, match=UNFIT[name]):
        load_model(source)


def test_files_of_a_list_that_are_right_agree_and_very_many_are_not_read(exported, monkeypatch):
    source, said = listing(exported, "tokenizer.json", b"{}"), []
    check(source, log=said.append)
    assert said[-1].endswith("agrees with its sha256.json")
    monkeypatch.setattr(files, "_MOST_FILES", 1)
    with pytest.raises(CheckpointError, match=r"sha256\.json: files: lists [23]; allowed: at most 1"):
        check(source, **QUIET)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", *companions.NAMES])
def test_a_pointer_in_place_of_a_small_file_is_called_one_before_anything_is_written(name, tmp_path):
    source = samples.make(tmp_path / "in")
    (source / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name}: is git-lfs's pointer to a file: `git lfs pull` fetches"):
        from_torch(source, tmp_path / "out", **QUIET)
    assert not list(tmp_path.glob("out*"))


def test_a_text_in_a_config_in_place_of_a_value_is_shown_as_text(tmp_path):
    wrong = {"tie_word_embeddings": "false", "num_hidden_layers": "8", "attn_type_list": "0,1"}
    for name, value in wrong.items():
        plain = samples.settings("original") | {name: value}
        source = samples.write(tmp_path / name, plain, samples.tensors("original"))
        with pytest.raises(CheckpointError, match=f"{name} ?= ?'{value}'"):
            open_source(source)


def test_a_name_that_looks_like_another_is_quoted(tmp_path):
    found = samples.tensors("original")
    found["model.norm.weight "] = found.pop("model.norm.weight")
    source = samples.write(tmp_path / "in", samples.settings("original"), found, shards=1)
    with pytest.raises(CheckpointError, match=r"missing model\.norm\.weight; surplus 'model\.norm\.weight '$"):
        open_source(source)
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"tensors": {"model.norm.weight ": "0" * 64}}))
    with pytest.raises(CheckpointError, match=r"missing 'model\.norm\.weight '"):
        check(samples.make(tmp_path / "sound"), listed, **QUIET)


@pytest.mark.parametrize(
    ("shape", "offsets", "got"),
    [
        ([2.0], [0, 8], r"shape \[2\.0\] and"),
        ([True], [0, 4], r"shape \[True\] and"),
        ([2], ["0", "8"], r"offsets \['0', '8'\];"),
        ([2], "08", r"offsets '08';"),
    ],
)
def test_sizes_and_places_of_a_tensor_are_said_to_be_whole_numbers(shape, offsets, got, tmp_path):
    head = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    raw = len(head).to_bytes(8, "little") + head + np.zeros(2, np.float32).tobytes()
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"{got}.*two offsets, whole numbers >= 0 and < 2\*\*63"):
        header.read(tmp_path / "a.safetensors", tmp_path)
