"""Laws of chunk-by-chunk writing: the same format as training, resumable, in bounded memory."""

import errno
import json
import os
import pathlib
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

from mm01_jax import checkpoint
from tests.checkpoint.standin import META, abstract, bits, make_mesh, make_model, make_state

CONFIG = json.dumps(META["config"], indent=1)


@pytest.fixture(scope="module")
def model():
    return make_model(make_mesh(1, 1, 1, 1), seed=3)


def plan(model) -> dict:
    return {path: (x.shape, x.dtype.name, stack) for path, x, stack in _leaves(model)}


def _leaves(model):
    """(path, array, number of stack axes) of each."""
    arrays = map(np.asarray, jax.tree.leaves(model))
    return zip(checkpoint.leaf_paths(model), arrays, checkpoint.leaf_stacks(model), strict=True)


def chunks(model):
    for path, x, stack in _leaves(model):
        for index in np.ndindex(x.shape[:stack]):
            yield path, index, x[index]


def write(target, model) -> None:
    with checkpoint.ArrayWriter(target, plan(model)) as writer:
        for path, index, chunk in chunks(model):
            writer.write(path, index, chunk, {f"{path}{index}": "0" * 64})
        writer.finish(CONFIG, {"dialect": "original"})


def test_weights_written_chunk_by_chunk_are_those_a_training_step_holds(tmp_path, model):
    write(tmp_path / "converted", model)
    opened = checkpoint.open_checkpoint(tmp_path / "converted")
    assert opened.manifest.meta == {"dialect": "original"} and opened.config_json == CONFIG
    assert len(opened.manifest.source_sha256) == len(list(chunks(model)))
    mesh = make_mesh(1, 2, 2, 2)
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(0, make_state(mesh, seed=3), META)
    trained = checkpoint.open_checkpoint(tmp_path / "run")
    assert trained.manifest.tree_sha256("model/") == opened.manifest.tree_sha256()
    assert trained.config_json == opened.config_json
    loaded = checkpoint.load_weights(tmp_path / "converted", abstract(make_model(mesh, 0)))
    assert bits(loaded) == bits(model)
    assert sorted(p.name for p in (tmp_path / "converted").iterdir()) == ["state"]


def test_an_interrupted_conversion_resumes_and_checks_what_is_there(tmp_path, model):
    target, everything = tmp_path / "out", list(chunks(model))
    with checkpoint.ArrayWriter(target, plan(model)) as writer:
        for path, index, chunk in everything[:20]:
            assert not writer.done(path, index)
            writer.write(path, index, chunk)
            assert writer.done(path, index)
    assert not target.exists()
    partial = tmp_path / "out.partial"
    # The third chunk is damaged on disk, and the journal's last line was cut by the crash.
    path, index, _ = everything[2]
    file = partial / "state/arrays" / f"model.{path.replace('/', '.')}" / "c" / "/".join(map(str, (*index, 0, 0)))
    file = file if file.exists() else file.parent
    raw = bytearray(file.read_bytes())
    raw[3] ^= 4
    file.write_bytes(raw)
    with open(partial / "journal.jsonl", "r+") as journal:
        journal.truncate(os.path.getsize(partial / "journal.jsonl") - 9)
    with checkpoint.ArrayWriter(target, plan(model)) as writer:
        again = [i for i, (path, index, _) in enumerate(everything) if not writer.done(path, index)]
        assert again == [2, *range(19, len(everything))]
        for i in again:
            writer.write(*everything[i])
        writer.finish(CONFIG)
    assert [checkpoint.open_checkpoint(target).read(p, i).tobytes() for p, i, _ in everything] == [
        chunk.tobytes() for _, _, chunk in everything
    ]


def test_finishing_early_names_what_is_missing(tmp_path, model):
    missing = pytest.raises(ValueError, match=r"\d+ of \d+ chunks are not written or verified, first \('model/embed'")
    with checkpoint.ArrayWriter(tmp_path / "out", plan(model)) as writer, missing:
        writer.finish(CONFIG)
    assert not (tmp_path / "out").exists()


def test_wrong_chunks_and_occupied_targets_are_refused(tmp_path, model):
    with checkpoint.ArrayWriter(tmp_path / "out", plan(model)) as writer:
        with pytest.raises(ValueError, match=r"chunk \(0, 1\) of model/stacks/0/norm is float64\[8\].*float32\[8\]"):
            writer.write("stacks/0/norm", (0, 1), np.zeros(8))
        with pytest.raises(checkpoint.Locked):
            checkpoint.ArrayWriter(tmp_path / "out", plan(model))
    with pytest.raises(ValueError, match="interrupted conversion of other leaves"):
        checkpoint.ArrayWriter(tmp_path / "out", {"embed": ((4, 4), "float32", 0)})
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there: exists already"):
        checkpoint.ArrayWriter(tmp_path / "there", plan(model))
    with pytest.raises(ValueError, match="not the path of a leaf"):
        checkpoint.ArrayWriter(tmp_path / "new", {"../embed": ((4, 4), "float32", 0)})


BOUNDED = """
import sys, numpy as np
from mm01_jax.checkpoint import ArrayWriter, open_checkpoint
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024
leaves = {"stacks/0/experts/gate": ((2, 2, 16, 1024, 2048), "bfloat16", 3)}
import ml_dtypes
chunk = np.ones((1024, 2048), ml_dtypes.bfloat16)
with ArrayWriter(sys.argv[1], leaves) as writer:
    peaks = []
    for index in np.ndindex(2, 2, 16):
        writer.write("stacks/0/experts/gate", index, chunk)
        peaks.append(anonymous())
    writer.finish("{}")
reader = open_checkpoint(sys.argv[1])
for index in np.ndindex(2, 2, 16):
    reader.read("stacks/0/experts/gate", index)
    peaks.append(anonymous())
print(max(peaks) - peaks[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_leaf(tmp_path):
    # 64 chunks of 4 MiB: the whole leaf is 256 MiB, a few chunks and their buffers are not.
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(checkpoint.__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", BOUNDED, str(tmp_path / "out")]
    grown = float(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert grown < 64, f"{grown:.0f} MiB"


@pytest.mark.parametrize("size", [0, 40, 400])
def test_what_the_system_refuses_to_write_is_its_error_with_the_file(tmp_path, model, size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoint.ArrayWriter(tmp_path / "converted", plan(model)) as writer:
        chunk = max(chunks(model), key=lambda chunk: chunk[2].nbytes)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(OSError, match="File too large") as error:
                writer.write(*chunk, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and pathlib.Path(error.value.filename).is_relative_to(
        tmp_path / "converted.partial"
    )


def test_an_array_file_has_the_bytes_of_its_blocks_and_no_fewer(tmp_path, model):
    write(tmp_path / "converted", model)
    found = checkpoint.open_checkpoint(tmp_path / "converted")
    path, index, _ = max(chunks(model), key=lambda chunk: chunk[2].nbytes)
    found.read(path, index)
    (file, *_) = (one for one in tmp_path.rglob(f"*.{path.replace('/', '.')}/c/**/*") if one.is_file())
    file.write_bytes(file.read_bytes()[4:])  # of an index whose entries are all one block, less would be sound
    with pytest.raises(checkpoint.CheckpointError, match=rf"{file}: has [0-9,]+ bytes; allowed: [0-9,]+, those of its"):
        found.read(path, index)
