"""An engine's programs come as an earlier start has traced them, with the same bits; what is damaged is traced anew."""

import hashlib
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from mm01_jax import compile_cache, kept_programs
from mm01_jax.inference import engine_compile
from mm01_jax.inference.drill.cases import Cases
from mm01_jax.inference.drill.schedules import Count, run_schedule
from tests import small
from tests.inference.engine import engines
from tests.slow import slow_but
from tests.train import cheap_run

pytest.importorskip("flatbuffers", reason="jax.export writes with it")

KEPT = ["decode", "get_row", "prefill", "put_row"]
OF_MEMORY = ["get_piece", "put_page", "put_state"]


class Starts:
    """Starts of one command that keeps its programs in a folder: an engine each, and the programs that it traced."""

    def __init__(self, folder):
        self.folder = folder

    def engine(self, **options) -> tuple[engines.Engine, list[str]]:
        traced, whole = [], kept_programs._of_leaves

        def noting(function, *given):
            traced.append(function.func.__name__)
            return whole(function, *given)

        with pytest.MonkeyPatch.context() as patch:  # no other engine of this process keeps anything
            patch.setattr(kept_programs, "_of_leaves", noting)
            patch.setattr(compile_cache, "keeps_traces", lambda: True)
            patch.setattr(kept_programs.Kept, "of_this_start", lambda: kept_programs.Kept(self.folder))
            return engines.engine(fresh=True, **options), sorted(traced)


@pytest.fixture
def starts(tmp_path):
    return Starts(tmp_path)


def check_bits(engine, cases: Cases) -> None:
    count, random = Count(), np.random.default_rng(3)
    run_schedule(engine, cases, 32, random, count)
    assert (count.equal, count.different) == (32, 0)


def test_the_second_engine_traces_nothing_and_both_have_the_bits_of_one_that_keeps_nothing(starts, capsys):
    for traced in (sorted(KEPT + OF_MEMORY), []):
        engine, found = starts.engine(prefix_bytes=10**6)
        assert found == traced
        check_bits(engine, engines.cases())
        assert engine.statistics()["prefix"]["hits"] > 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mesh", slow_but((), ({"data": 2, "expert": 2, "tensor": 2},)), ids=str)
def test_on_a_mesh_the_second_engine_has_the_bits_too(starts, mesh):
    plain = engines.engine(mesh=mesh)
    for traced in (KEPT, []):
        engine, found = starts.engine(mesh=mesh)
        assert found == traced
        check_bits(engine, Cases(plain, engines.VOCAB, longest=48, count=40, seed=0))


def test_a_torn_file_is_traced_anew_and_one_of_something_else_is_said(starts, capsys):
    starts.engine()
    (torn,), (other,) = (list(starts.folder.glob(f"{name}-*")) for name in ("put_row", "get_row"))
    torn.write_bytes(torn.read_bytes()[:-1])
    other.write_bytes(hashlib.sha256(b"no program").digest() + b"no program")
    engine, traced = starts.engine()
    assert traced == ["put_row"] and kept_programs._read(torn) is not None
    check_bits(engine, engines.cases())
    assert capsys.readouterr().err.startswith("the program get_row is not kept: ")


def test_what_is_named_by_its_place_in_memory_is_not_kept(tmp_path):
    with small.one_device(), pytest.raises(ValueError, match="without a name"):
        kept_programs.Kept(tmp_path).traced(len, (), None, repr(object()), name="decode")
    assert not list(tmp_path.iterdir())


ASKS = """
import sys, types
{before}
import mm01_jax
from mm01_jax import compile_cache
from mm01_jax.inference.__main__ import main
def load_as_asked(given):
    raise ValueError(f"keeps: {{compile_cache.keeps_traces()}}")
mm01_jax.loading = sys.modules["mm01_jax.loading"] = types.SimpleNamespace(load_as_asked=load_as_asked)
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("before", "flags", "keeps"), [("", [], True), ("import jax", [], False), ("", ["--nocompile-cache"], False)]
)
def test_the_command_keeps_programs_unless_something_has_imported_jax_before_it(tmp_path, before, flags, keeps):
    words = [f"--checkpoint={tmp_path}", "--prompt=a", *flags]
    done = subprocess.run([sys.executable, "-c", ASKS.format(before=before), *words], capture_output=True, text=True)
    assert f"keeps: {keeps}" in done.stderr


@pytest.mark.slow
def test_compiled_in_threads_as_on_accelerators_the_bits_are_the_same(starts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_compile, "dispatch", types.SimpleNamespace(platform=lambda: "gpu"))
        for traced in (KEPT, []):
            engine, found = starts.engine()
            assert found == traced
            check_bits(engine, engines.cases())


@pytest.mark.slow
def test_the_second_start_of_the_command_traces_nothing_and_says_the_same(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        cheap_run.run(tmp_path / "run", small.config(small.write_text(tmp_path / "text"), train__steps=1))
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_LOG_COMPILES": "1"}
    command = [sys.executable, "-m", "mm01_jax.inference", f"--checkpoint={tmp_path / 'run'}", "--prompt=def "]
    first, second, anew = (
        subprocess.run([*command, *flags], env=os.environ | settings, capture_output=True, text=True, check=True)
        for flags in ([], [], ["--nocompile-cache"])
    )
    assert first.stdout == second.stdout == anew.stdout
    assert len(first.stdout) > len("def \n")
    traced = [done.stderr.count("Finished tracing _of_leaves") for done in (first, second, anew)]
    assert traced == [len(KEPT), 0, 0]
