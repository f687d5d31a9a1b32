"""Every program of a run is compiled once: with evaluation, saving and a resume, on several meshes, then generation."""

import collections
import os
import re
import subprocess
import sys

import pytest

from tests.slow import slow_but
from tests.small import write_text

# A process of its own, because what another test has imported or compiled would hide what is compiled late here.
RUNS = """
import sys
from mm01_jax.evals.__main__ import main as evaluate
from mm01_jax.inference.__main__ import main as generate
from mm01_jax.train import loop
from tests import small

text, workdir, sizes = sys.argv[1:]
sizes = {f"mesh__{axis}": int(size) for axis, size in (word.split("=") for word in sizes.split(","))}
for steps in (20, 23):
    changes = dict(train__steps=steps, train__batch_size=4, train__eval_every=6, train__checkpoint_every=7) | sizes
    changes["model__num_kv_heads"] = 2
    loop.run(small.config(text, **changes), workdir)
    print("== run", file=sys.stderr, flush=True)
for command, *words in ((generate, "--prompt=def", "--max-tokens=40", "--temperature=0"), (evaluate, "perplexity")):
    if set(sizes.values()) == {1}:
        assert command([*words, f"--checkpoint={workdir}"]) == 0
    print("== run", file=sys.stderr, flush=True)
"""
MESHES = [("data=1", 1), ("data=2,tensor=2", 4), ("data=2,expert=2", 4)]


def compiled(text, workdir, mesh: str, devices: int) -> list[collections.Counter]:
    """Of the run, its resumption, generation and an evaluation: (program, shapes it was compiled for) -> how often."""
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(text), str(workdir), mesh],
        env=os.environ | {"JAX_LOG_COMPILES": "1", "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pattern = r"Compiling jit\((\w+)\) with global shapes and types (.*)"
    return [collections.Counter(re.findall(pattern, part)) for part in done.stderr.split("== run\n")[:-1]]


@pytest.mark.parametrize(("mesh", "devices"), slow_but([MESHES[2]], MESHES))
def test_every_program_of_a_run_and_its_resumption_is_compiled_once(tmp_path, mesh, devices):
    found = compiled(write_text(tmp_path / "text"), tmp_path / "run", mesh, devices)
    fresh, resumed = ({name for name, _ in part} for part in found[:2])
    assert {"init_state", "train_step", "score"} <= fresh
    assert {"train_step", "score"} <= resumed
    assert not [(name, times) for part in found for (name, _), times in part.items() if times > 1]
    for part in found[:2]:
        kinds = collections.Counter(name for name, _ in part)
        assert [kinds[name] for name in ("train_step", "score") if name in kinds] == [1, 1]
