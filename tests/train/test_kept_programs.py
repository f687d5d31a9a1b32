"""A kept program is taken where nothing has changed that tracing reads, only there; its numbers are those of jit."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from mm01_jax import kept_programs
from mm01_jax.config import saved
from tests import small

pytest.importorskip("flatbuffers", reason="jax.export writes with it")

PACKAGE = "kept_programs_subject"  # stands for ours, whose files a test must not touch


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The one source that is ours, older than this process; and a cache of one's own."""
    file = tmp_path / PACKAGE / "__init__.py"
    file.parent.mkdir()
    file.write_text("x = 1\n")
    os.utime(file, (1e9, 1e9))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(kept_programs, "OURS", (PACKAGE,))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    yield file
    jax.config.update("jax_compilation_cache_dir", before)


def place(x, spec: P) -> jax.Array:
    return jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), spec))


class Start:
    """One start of a run: whether its step was traced, and what it gave."""

    def __init__(self, described: str = "", rows: int = 4, mesh: tuple[int, int] = (1, 1), **options):
        self.traced, self.said = 0, []
        auto = (jax.sharding.AxisType.Auto,) * 2
        with jax.set_mesh(jax.make_mesh(mesh, ("data", "tensor"), axis_types=auto)):
            state = {"weights": place(jnp.arange(8.0).reshape(2, 4), P(None, "tensor")), "count": place(0, P())}
            self.before = state["weights"]
            step = kept_programs.kept_step(self._step, described, self.said.append, **options)
            state, metrics = step(state, (place(jnp.linspace(0.0, 1.0, rows)[:, None], P("data")),))
        self.result = jax.tree.map(np.asarray, (state, metrics))
        self.shardings = jax.tree.map(lambda x: x.sharding, state)

    def _step(self, state, batch):
        self.traced += 1
        mean = jax.shard_map(lambda x: jax.lax.pmean(jnp.mean(x), "data"), in_specs=P("data"), out_specs=P())
        loss = jnp.sum(jnp.tanh(batch[0] * state["weights"][:1])) + mean(batch[0])
        return {"weights": state["weights"] * 0.9 + loss, "count": state["count"] + 1}, {"loss": loss}


def files_of(source) -> list:
    return sorted(source.parents[1].glob("cache/programs/step-*"))


def test_the_second_start_takes_the_program_of_the_first_and_its_bits(source):
    first, second = Start(), Start()
    assert (first.traced, second.traced, first.said + second.said) == (1, 0, [])
    jax.config.update("jax_enable_compilation_cache", False)
    anew = Start()
    jax.config.update("jax_enable_compilation_cache", True)
    assert anew.traced == 1
    for start in (first, second):
        jax.tree.map(np.testing.assert_array_equal, start.result, anew.result)
    assert second.before.is_deleted()  # donated, as by jit


def test_on_a_mesh_the_second_start_has_the_bits_and_the_shardings_of_jit(source):
    first, second, elsewhere = Start(mesh=(4, 2)), Start(mesh=(4, 2)), Start(mesh=(2, 4))
    assert (first.traced, second.traced, elsewhere.traced) == (1, 0, 1)
    assert first.said + second.said + elsewhere.said == []
    anew = Start(described=None, mesh=(4, 2))
    assert anew.shardings["weights"].spec == P(None, "tensor")
    for start in (first, second):
        jax.tree.map(np.testing.assert_array_equal, start.result, anew.result)
        assert start.shardings == anew.shardings
    assert second.before.is_deleted()


CHANGES = {
    "the config": lambda patch, source: {"described": "another"},
    "rows of a batch": lambda patch, source: {"rows": 8},
    "an option": lambda patch, source: {"compiler_options": {"xla_cpu_enable_fast_math": True}},
    "a source": lambda patch, source: source.write_text("x = 2\n") and os.utime(source, (1e9, 1e9)) or {},
    "a new source": lambda patch, source: _new_source(source),
    "a library's version": lambda patch, source: (
        patch.setattr(kept_programs.metadata, "version", lambda name: "9") or {}
    ),
    "a library's file": lambda patch, source: patch.setattr(kept_programs, "_statuses", _edited) or {},
    "a setting": lambda patch, source: patch.setenv("PALLAS_ANYTHING", "1") or {},
}


def _new_source(source) -> dict:
    other = source.with_name("other.py")
    other.write_text("")
    os.utime(other, (1e9, 1e9))
    return {}


def _edited(packages):
    yield "jax/_src/core.py", os.stat(__file__)


@pytest.mark.parametrize("change", CHANGES)
def test_a_start_with_something_else_traces_anew(source, monkeypatch, change):
    Start()
    other = CHANGES[change](monkeypatch, source)
    assert Start(**other).traced == 1
    assert Start(**other).traced == 0
    assert len(files_of(source)) == 2


def test_a_source_that_moves_to_another_folder_is_another_program(source):
    before, after = (source.parent / folder / "one.py" for folder in ("before", "after"))
    for path in (before, after):
        path.parent.mkdir()
    before.touch()
    os.utime(before, (1e9, 1e9))
    Start()
    before.rename(after)
    assert Start().traced == 1


def test_a_setting_of_jax_that_tracing_reads_is_part_of_the_key(source):
    Start()
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        assert Start().traced == 1
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)


@pytest.mark.parametrize("torn", [b"", b"x" * 40, None])
def test_a_torn_file_is_traced_anew_and_replaced(source, torn):
    Start()
    (file,) = files_of(source)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if torn is None else torn)
    again = Start()
    assert again.traced == 1 and again.said == []
    assert Start().traced == 0


def test_sources_that_changed_since_the_process_began_keep_nothing(source):
    os.utime(source, (time.time() + 5,) * 2)
    assert Start().traced == Start().traced == 1
    assert not files_of(source)


def test_an_editors_lock_beside_a_source_is_none(source):
    source.with_name(".#loop.py").symlink_to("someone@host.1:2")
    first, second = Start(), Start()
    assert (first.traced, second.traced, first.said + second.said) == (1, 0, [])


def test_a_package_without_a_source_keeps_nothing(source):
    source.unlink()
    source.with_suffix(".pyc").touch()
    assert kept_programs._folder() is None


def test_a_program_that_cannot_be_exported_is_said_and_the_start_goes_on(source, monkeypatch):
    monkeypatch.setattr(kept_programs, "_of_leaves", None)
    start = Start()
    assert start.traced == 1
    assert start.said[0].startswith("the step's program is not kept: ")


def test_what_is_wrong_with_a_step_rises(source):
    def wrong(state, batch):
        raise ZeroDivisionError("of the step")

    with (
        jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))),
        pytest.raises(ZeroDivisionError, match="of the step"),
    ):
        kept_programs.kept_step(wrong, "", lambda line: None)({"weights": jnp.ones(3)}, (jnp.ones(3),))


def test_a_folder_that_is_only_read_is_no_error(source, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_programs.files, "write", full)
    start = Start()
    assert (start.traced, start.said) == (1, [])


def test_the_least_recently_used_go(source, monkeypatch):
    monkeypatch.setattr(kept_programs, "MOST_FILES", 2)
    Start("a")
    Start("b")
    os.utime(files_of(source)[0], (1e9, 1e9))
    os.utime(files_of(source)[1], (1e9, 1e9))
    assert Start("a").traced == 0  # used just now
    Start("c")
    assert [Start("a").traced, Start("c").traced, Start("b").traced] == [0, 0, 1]


def train(config, folder) -> tuple[list[float], bool]:
    """A start of mm01-train in a process of its own: its losses, and whether it traced the step."""
    done = subprocess.run(
        [sys.executable, "-m", "mm01_jax.train", f"--config={config}", f"--workdir={folder}"],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "JAX_LOG_COMPILES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "Finished tracing " in done.stderr
    return [row["loss"] for row in rows], "Finished tracing _of_leaves " in done.stderr


def test_the_second_run_of_the_command_has_the_losses_of_the_first_and_traces_no_step(tmp_path):
    config = tmp_path / "run.json"
    config.write_text(saved.to_json(small.config(small.write_text(tmp_path / "text"), train__eval_every=100)))
    losses, _ = train(config, tmp_path / "first")
    assert len(losses) == 6
    assert train(config, tmp_path / "second") == (losses, False)


ASKS = """
import sys, types
from mm01_jax.train.__main__ import main
asked = []
sys.modules["mm01_jax.train.loop"] = types.SimpleNamespace(run=lambda *args, **options: asked.append(options))
assert main(sys.argv[1:]) == 0
print(asked[0]["keeps_program"])
"""
FROM_FILE = "from mm01_jax.config import saved\n\ndef get_config():\n    return saved.from_json({text!r})\n"


@pytest.mark.parametrize(
    ("before", "flags", "keeps"),
    [("", [], "True"), ("import jax\n", [], "False"), ("", ["--nocompile-cache"], "False")],
)
def test_the_command_keeps_programs_unless_its_config_has_imported_jax(tmp_path, before, flags, keeps):
    config = tmp_path / "run.py"
    config.write_text(before + FROM_FILE.format(text=saved.to_json(small.config())))
    words = [f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags]
    done = subprocess.run([sys.executable, "-c", ASKS, *words], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (keeps, 0), done.stderr
