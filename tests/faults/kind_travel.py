"""Checkpoints that are taken elsewhere: to another folder, out of a hub's cache, into another environment.

Members of an environment start real commands: what they print must be what they print in this one.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from tests.faults import readers
from tests.faults.forked import ROOT

WORDS = "a checkpoint reads the same in another folder, out of a hub's cache, with another environment"
NORM, GATE = "model.norm.weight", "model.layers.1.block_sparse_moe.gate.weight"
SECONDS = 300


def judge(member: Callable[[pathlib.Path], str | None], room: pathlib.Path) -> str | None:
    (room / "in").mkdir()
    (room / "out").mkdir()
    return member(room)


# Directories.


def _torch(room: pathlib.Path, **dtypes: str) -> pathlib.Path:
    """A PyTorch directory with a tokenizer; some tensors of other dtypes."""
    from tests.convert import samples

    found = samples.tensors("original")
    for name in found:
        for end, dtype in dtypes.items():
            if name.endswith(f"{end}.weight"):
                found[name] = found[name].astype(dtype)
    path = samples.write(room / "in" / "torch", samples.settings("original"), found)
    readers.make_tokenizer(str(path))
    return path


def _convert(room: pathlib.Path, source: pathlib.Path, *flags: str):
    arguments = ["from-torch", f"--source={source}", f"--target={room / 'out' / 'ours'}", *flags]
    return readers.server().call("tests.faults.kind_travel:convert", *arguments, room=room)


def convert(*arguments: str) -> int:
    from mm01_jax.convert.__main__ import main

    return main([*arguments, "--nocompile-cache"])


def out_of_a_cache(room: pathlib.Path) -> str | None:
    """snapshots/x has links into blobs of the same repository, as huggingface_hub lays it out."""
    made, repository = _torch(room), room / "in" / "models--one--two"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(made.iterdir())):
        path.rename(repository / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    ended = _convert(room, snapshot)
    tokenizer = room / "out" / "ours" / "tokenizer.json"
    return ended.complained if ended.code or not tokenizer.is_file() or tokenizer.is_symlink() else None


def out_of_a_cache_and_further(room: pathlib.Path) -> str | None:
    """A blob is itself a link out of the repository: refused by name."""
    problem = out_of_a_cache(room)
    shutil.rmtree(room / "out" / "ours")
    blob = room / "in" / "models--one--two" / "blobs" / f"{0:064x}"
    blob.rename(room / "elsewhere")
    blob.symlink_to(room / "elsewhere")
    ended = _convert(room, room / "in" / "models--one--two" / "snapshots" / "0123")
    return problem or (None if ended.code == 3 and "a link out of" in ended.complained else ended.complained or "taken")


def _restored(room: pathlib.Path, name: str) -> np.ndarray:
    from mm01_jax.checkpoint import open_checkpoint

    leaf = {NORM: "final_norm"}[name]
    return open_checkpoint(room / "out" / "ours").read(leaf)


def float32_norms(room: pathlib.Path) -> str | None:
    """Values that bfloat16 has too: read without a word, and exact."""
    from tests.convert import samples

    ended = _convert(room, _torch(room, norm="float32", gate="float32"))
    if ended.code:
        return ended.complained
    same = np.array_equal(_restored(room, NORM), samples.tensors("original")[NORM])
    return None if same and ended.code == 0 else "other values"


def float32_of_finer_values(room: pathlib.Path) -> str | None:
    """Values that bfloat16 has not: refused by name, kept as float32, rounded where that is asked for."""
    source = _torch(room, norm="float32")
    from safetensors.numpy import load_file, save_file

    for path in source.glob("*.safetensors"):
        found = load_file(path)
        if NORM in found:
            found[NORM] = found[NORM] + np.float32(2**-20)
            fine = found[NORM]
        save_file(found, path, metadata={"format": "pt"})
    refused = _convert(room, source)
    if refused.code != 3 or NORM not in refused.complained or "--dtype=float32" not in refused.complained:
        return f"not refused by name: {refused.complained}"
    shutil.rmtree(room / "out" / "ours.partial")
    kept = _convert(room, source, "--dtype=float32")
    if kept.code or not np.array_equal(_restored(room, NORM), fine):
        return f"not kept: {kept.complained}"
    shutil.rmtree(room / "out" / "ours")
    rounded = _convert(room, source, "--dtype=bfloat16")
    same = rounded.code == 0 and np.array_equal(_restored(room, NORM), fine.astype("bfloat16"))
    return None if same else f"not rounded: {rounded.complained}"


def its_tokenizer_goes_along(room: pathlib.Path) -> str | None:
    ended = _convert(room, _torch(room))
    same = (room / "out" / "ours" / "tokenizer.json").read_bytes() == (
        room / "in" / "torch" / "tokenizer.json"
    ).read_bytes()
    return ended.complained if ended.code else None if same else "another tokenizer"


def a_folder_that_was_moved(room: pathlib.Path) -> str | None:
    """A run trained on a tokenizer.json, moved, the file deleted: its steps still have their tokenizer."""
    readers.make_tokenizer(str(room / "in"))
    call = functools.partial(readers.server().call, room=room)
    ended = call("tests.faults.kind_travel:train_on_a_file", str(room / "in"))
    if ended.code:
        return ended.complained
    (room / "in" / "run").rename(room / "out" / "moved")
    (room / "in" / "tokenizer.json").unlink()
    for name in ("moved", "moved/checkpoints/00000002"):
        ended = call("tests.faults.kind_travel:load", str(room / "out" / name))
        if ended.code or "ids" not in ended.said or "257 ids" in ended.said:
            return f"{name}: {ended.complained or ended.said}"
    return None


def train_on_a_file(path: str) -> None:
    from mm01_jax.train import loop
    from tests import small

    readers._cheap()
    text = small.write_text(pathlib.Path(path) / "text")
    config = small.config(text, train__steps=2, data__held_out=0.0, data__tokenizer=f"{path}/tokenizer.json")
    loop.run(config, f"{path}/run", log=lambda line: None)


def load(path: str) -> int:
    from mm01_jax import command, loading

    def read(argv) -> None:
        del argv
        print(loading.load(path).tokenizer.vocab_size, "ids")

    return command.run(read, [])


# Environments.


@functools.cache
def _checkpoint() -> pathlib.Path:
    return readers.sound("run") / "run"


def _generate(environment: dict[str, str], home: pathlib.Path) -> tuple[int, bytes, str]:
    """(exit code, stdout, stderr) of the command, greedy, from a folder of its own."""
    shell = [
        sys.executable,
        "-m",
        "mm01_jax.inference",
        f"--checkpoint={_checkpoint()}",
        "--prompt=def",
        "--temperature=0",
    ]
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PYTHONIO", "LC_", "LANG"))}
    settings |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "HOME": str(home)} | environment
    done = subprocess.run(
        [*shell, "--max-tokens=6"], env=settings, cwd=home, capture_output=True, timeout=SECONDS, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


@functools.cache
def _here() -> bytes:
    room = _checkpoint().parents[1]
    code, out, said = _generate({}, room)
    if code:
        raise RuntimeError(said)
    return out


def _same(**environment: str) -> Callable[[pathlib.Path], str | None]:
    def member(room: pathlib.Path) -> str | None:
        code, out, said = _generate(environment, room)
        if code or "Traceback" in said:
            return f"ends with {code}: {said[-500:]}"
        return None if out == _here() else f"prints {out!r}, here {_here()!r}"

    return member


def a_platform_that_is_not_there(room: pathlib.Path) -> str | None:
    code, _, said = _generate({"JAX_PLATFORMS": "cuda"}, room)
    lines = [line for line in said.splitlines() if line.strip()]
    good = code == 2 and "Traceback" not in said and len(lines) <= 20 and "cuda" in said
    return None if good else f"ends with {code}: {said[-500:]}"


def an_ascii_terminal(room: pathlib.Path) -> str | None:
    """What a terminal cannot show is shown as something else; the rest is the same."""
    code, out, said = _generate({"PYTHONIOENCODING": "ascii"}, room)
    if code or "Traceback" in said:
        return f"ends with {code}: {said[-500:]}"
    here = _here().decode()
    return None if out.isascii() and len(out) >= sum(c.isascii() for c in here) else f"prints {out!r}, here {here!r}"


def a_home_that_cannot_be_written(room: pathlib.Path) -> str | None:
    (room / "in" / "home").touch()  # no folder at all: whoever runs this, it cannot be written into
    return _same(HOME=str(room / "in" / "home"), XDG_CACHE_HOME="")(room)


MEMBERS = {
    "a snapshot of a hub's cache": out_of_a_cache,
    "a snapshot whose blobs lead further": out_of_a_cache_and_further,
    "float32 norms among bfloat16": float32_norms,
    "float32 norms of finer values": float32_of_finer_values,
    "its tokenizer goes along": its_tokenizer_goes_along,
    "a run that was moved": a_folder_that_was_moved,
    "JAX_ENABLE_X64": _same(JAX_ENABLE_X64="1"),
    "a platform that is not there": a_platform_that_is_not_there,
    "an ASCII terminal": an_ascii_terminal,
    "a C locale": _same(LC_ALL="C", LANG="C"),
    "a POSIX locale without UTF-8 mode": _same(LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "a home that cannot be written": a_home_that_cannot_be_written,
    "other defaults of jax": _same(JAX_DEFAULT_MATMUL_PRECISION="bfloat16", JAX_NUMPY_DTYPE_PROMOTION="strict"),
    "no home": _same(HOME=""),
}
