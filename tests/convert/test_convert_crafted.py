"""Our own JSON files written by somebody else, every checksum right: refused with exit code 3, file and key named."""

import contextlib
import copy
import functools
import hashlib
import io
import json
import pathlib
import shutil

import numpy as np
import pytest

from mm01_jax.checkpoint import CheckpointError, digest, read_manifest
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import open_source
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.convert.torch.files import TensorFiles
from mm01_jax.convert.torch.header import MAX_HEADER_BYTES
from mm01_jax.loading import load_model
from tests.convert import samples

QUIET = {"log": lambda line: None}
MISSING = object()
WRONG = {"missing": MISSING, "null": None, "-1": -1, "text": "x", "list": [-1], "2^70": [2**70], "object": {"a": 7}}
EMBED = ("leaves", "model/embed")
MANIFEST_KEYS = [(key,) for key in ("format", "step", "tree_sha256", "meta", "versions", "files", "source_sha256")]
MANIFEST_KEYS += [("leaves",), EMBED, ("files", "config.json")]
MANIFEST_KEYS += [(*EMBED, key) for key in ("shape", "dtype", "stack", "file", "block", "lanes", "sha256")]
MANIFEST_KEYS += [("meta", "source")] + [("meta", "source", key) for key in ("dialect", "dtype", "config")]
ALLOWED = {("step", "null"), ("versions", "object")}  # these are no mistakes
TAKEN_OUT = {EMBED: "tree_sha256", ("files", "config.json"): "files"}  # gone, they leave another key wrong


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    room = tmp_path_factory.mktemp("crafted")
    from_torch(samples.make(room / "in"), room / "ours", **QUIET)
    to_torch(room / "ours", room / "out", **QUIET)
    return room


@pytest.fixture
def room(made, tmp_path) -> pathlib.Path:
    return shutil.copytree(made, tmp_path / "room")


def run(*arguments) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(argument) for argument in arguments])
    return code, said.getvalue()


def put(plain: dict, keys: tuple[str, ...], value) -> dict:
    """A copy with another value under the keys, or none."""
    plain = copy.deepcopy(plain)
    *above, last = keys
    place = functools.reduce(dict.__getitem__, above, plain)
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return plain


def seal(path: pathlib.Path, body: dict) -> None:
    """Writes a manifest with the checksum of what it now says."""
    rest = json.dumps({key: value for key, value in body.items() if key != "sha256"})[1:].encode()
    path.write_bytes(b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest)


def manifest_of(room: pathlib.Path) -> tuple[pathlib.Path, dict]:
    path = room / "ours" / "state" / "manifest.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [(keys, wrong) for keys in MANIFEST_KEYS for wrong in WRONG if (keys[-1], wrong) not in ALLOWED],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_manifest_key_that_is_missing_or_of_another_type_is_refused_by_name(keys, wrong, room):
    path, body = manifest_of(room)
    seal(path, put(body, keys, WRONG[wrong]))
    name = TAKEN_OUT.get(keys, ".".join(keys)) if wrong == "missing" else ".".join(keys)
    for command in (["inspect"], ["to-torch", f"--target={room / 'x'}"], ["check", f"--against={room / 'in'}"]):
        code, said = run(*command, f"--source={room / 'ours'}")
        assert code == 3 and f"{path}: {name}" in said, said
    code, said = run("check", f"--source={room / 'in'}", f"--against={path}")
    assert code == 3 and f"{path}: {name}" in said, said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [2**40, 2**40]}, "a chunk has at most"),
        (
            {"shape": [2**62, 2**62], "stack": 2},
            "1 digests for 21,267,647,932,558,653,966,460,912,964,485,513,216 chunks",
        ),
        ({"shape": [2**62, 16], "stack": 1, "lanes": ""}, "lanes: got 0 digests"),
        ({"shape": [2**62] * 300, "stack": 300}, "at most 16 whole numbers"),
        ({"stack": 3}, "stack=3"),
        ({"lanes": "0" * 64}, "lanes: got 2 digests for 1 chunks"),
        ({"lanes": "0" * 8}, "lanes: got 0.25 digests"),
        ({"file": [64, 16]}, "file=(64, 16)"),
        ({"block": [3, 16]}, "block=(3, 16)"),
        ({"block": [32]}, "block=(32,)"),
        ({"file": [], "block": []}, "file=()"),
        ({"dtype": "float64"}, "dtype: got 'float64'"),
        ({"lanes": "0" * 32}, "sha256 does not follow"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_leaf_that_contradicts_itself_is_refused_by_name(change, says, room):
    path, body = manifest_of(room)
    body["leaves"]["model/embed"] |= change
    seal(path, body)
    with pytest.raises(CheckpointError) as error:
        read_manifest(path)
    assert f"{path}: leaves.model/embed" in str(error.value) and says in str(error.value)


def test_an_adapter_beside_the_weights_and_a_pointer_in_place_of_them_are_said(tmp_path):
    source = samples.make(tmp_path / "in")
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter_config.json: an adapter lies here"):
        open_source(source)
    (source / "adapter_config.json").unlink()
    next(source.glob("*.safetensors")).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_source(source)


def test_leaves_of_whole_numbers_are_refused_though_all_digests_follow(room):
    path, body = manifest_of(room)
    for name, leaf in body["leaves"].items():
        lanes = np.frombuffer(bytes.fromhex(leaf["lanes"]), "<u4").reshape(*leaf["shape"][: leaf["stack"]], 4)
        leaf |= {"dtype": "int16", "sha256": digest.leaf_sha256(name, leaf["shape"], "int16", lanes)}
    body["tree_sha256"] = digest.tree_sha256({name: leaf["sha256"] for name, leaf in body["leaves"].items()})
    seal(path, body)
    code, said = run("to-torch", f"--source={room / 'ours'}", f"--target={room / 'x'}")
    assert code == 3 and "leaves of dtype int16, the first of int16 " in said


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff}", b'"a": 1, "a": 2}', b"[1]"])
def test_manifest_that_is_no_json_is_refused(raw, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(b'{"sha256": "' + hashlib.sha256(raw).hexdigest().encode() + b'",\n' + raw)
    with pytest.raises(CheckpointError, match="manifest.json: not valid JSON"):
        read_manifest(path)


SHA256_KEYS = ["tensors", "headers", "files", "tensors.model.norm.weight", "files.config.json"]


@pytest.mark.parametrize(
    ("key", "wrong"),
    # Without the others the list says less, which is no mistake, or another law's.
    [(key, wrong) for key in SHA256_KEYS for wrong in WRONG if wrong != "missing" or key == "tensors"],
)
def test_sha256_list_with_a_key_of_another_type_is_refused_by_name(key, wrong, room):
    path = room / "out" / "sha256.json"
    kind, _, name = key.partition(".")
    path.write_text(json.dumps(put(json.loads(path.read_text()), (kind, name) if name else (kind,), WRONG[wrong])))
    for command in ([f"--source={room / 'out'}"], [f"--source={room / 'in'}", f"--against={path}"]):
        code, said = run("check", *command)
        assert code == 3 and f"{path}: {key}" in said, said


def write_config(room: pathlib.Path, raw: bytes) -> pathlib.Path:
    """config.json of our checkpoint, its SHA-256 in the manifest."""
    (room / "ours" / "state" / "config.json").write_bytes(raw)
    path, body = manifest_of(room)
    seal(path, put(body, ("files", "config.json"), hashlib.sha256(raw).hexdigest()))
    return path.with_name("config.json")


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("key", ["model", "train", "model.embed_dim", "model.period", "model.norm_eps", "mesh.rules"])
def test_config_key_that_is_missing_or_of_another_type_is_refused_by_name(key, wrong, room):
    plain = json.loads((room / "ours" / "state" / "config.json").read_text())
    path = write_config(room, json.dumps(put(plain, tuple(key.split(".")), WRONG[wrong])).encode())
    for command in (["inspect"], ["to-torch", f"--target={room / 'x'}"], ["check", f"--against={room / 'in'}"]):
        code, said = run(*command, f"--source={room / 'ours'}")
        assert code == 3 and str(path) in said and key in said, said


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"[]", b"", b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}"])
def test_config_that_is_no_json_object_is_refused(raw, room):
    path = write_config(room, raw)
    code, said = run("inspect", f"--source={room / 'ours'}")
    assert code == 3 and str(path) in said, said


@pytest.mark.parametrize(
    ("key", "says"),
    [("num_periods", "model.num_periods: got 1000000000"), ("num_experts", "allowed: at most 30,000 experts")],
)
def test_config_of_a_billion_tensors_is_refused_before_they_are_listed(key, says, room):
    plain = json.loads((room / "ours" / "state" / "config.json").read_text())
    path = write_config(room, json.dumps(put(plain, ("model", key), 10**9)).encode())
    code, said = run("inspect", f"--source={room / 'ours'}")
    assert code == 3 and str(path) in said and says in said


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"num_local_experts": 10**9}, "allowed: at most 30,000 experts"),
        ({"block_size": "x"}, "block_size='x'"),
        ({"block_size": 10**9}, "block_size=1000000000"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dialect", ["original", "native"])
def test_pytorch_config_with_an_absurd_size_is_refused_by_name(dialect, field, says, tmp_path):
    samples.write(tmp_path / "in", samples.settings(dialect) | field, samples.tensors(dialect))
    code, said = run("from-torch", f"--source={tmp_path / 'in'}", f"--target={tmp_path / 'x'}")
    assert code == 3 and str(tmp_path / "in" / "config.json") in said and says in said, said


def test_number_beyond_float64_in_a_config_is_refused_and_not_read_as_infinity(tmp_path):
    samples.make(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    path.write_text(path.read_text().replace('"model_type"', '"initializer_range": 1e400, "model_type"'))
    code, said = run("from-torch", f"--source={tmp_path / 'in'}", f"--target={tmp_path / 'x'}")
    assert code == 3 and f"{path}: not valid JSON: 1e400 is beyond float64" in said


def test_an_index_is_bounded_as_the_headers_are(tmp_path):
    with open(tmp_path / "model.safetensors.index.json", "wb") as file:
        file.truncate(MAX_HEADER_BYTES + 1)
    with pytest.raises(CheckpointError, match="index.json: has 16,000,001 bytes; allowed: at most 16,000,000"):
        TensorFiles(tmp_path)


def test_headers_of_many_shards_are_bounded_together(tmp_path):
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    head = json.dumps({f"t{i}": entry for i in range(60_000)}).encode()
    (tmp_path / "0.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    for i in range(1, 50):
        (tmp_path / f"{i}.safetensors").symlink_to("0.safetensors")
    index = {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(50)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="safetensors: header of .* of the others; allowed here: at most"):
        TensorFiles(tmp_path)


def _metadata(directory: pathlib.Path) -> None:
    """Not of texts, which the library refuses when it opens the file."""
    path = next(directory.glob("*.safetensors"))
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = json.dumps(json.loads(raw[8 : 8 + length]) | {"__metadata__": {"format": 5}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + length :])
    (directory / "sha256.json").unlink()


def _no_list(directory: pathlib.Path) -> None:
    (directory / "sha256.json").unlink()
    (directory / "sha256.json").symlink_to("nowhere")


def _another_bit(directory: pathlib.Path) -> None:
    path = next(directory.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x11")


def _two_dtypes(directory: pathlib.Path) -> None:
    plain = json.loads((directory / "config.json").read_text()) | {"torch_dtype": "bfloat16", "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(plain))
    (directory / "sha256.json").unlink()


def _no_dtype(directory: pathlib.Path) -> None:
    plain = json.loads((directory / "config.json").read_text()) | {"dtype": 16}
    (directory / "config.json").write_text(json.dumps(plain))
    (directory / "sha256.json").unlink()


OF_ALL = {
    _metadata: "__metadata__ is {'format': 5}; allowed: an object of texts",
    _no_list: "sha256.json: missing",
    _another_bit: "its SHA-256 is not the one in sha256.json",
    _two_dtypes: "config.json: torch_dtype='bfloat16' contradicts dtype='float32'",
    _no_dtype: "config.json: dtype=16 is not the name of a dtype",
}


@pytest.mark.parametrize("craft", OF_ALL)
def test_what_a_conversion_refuses_of_pytorch_weights_a_model_is_not_made_of(craft, room, tmp_path):
    craft(room / "out")
    for read in (functools.partial(from_torch, target=tmp_path / "x", **QUIET), load_model):
        with pytest.raises(CheckpointError, match=OF_ALL[craft]):
            read(room / "out")
