"""The ways that `benchmarks.mesh_ways` compares: each a config that divides, and messages that say what lax's say."""

import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.exposed import Event
from benchmarks.mesh_messages import by_kind
from benchmarks.mesh_ways import __main__ as mesh_ways
from benchmarks.mesh_ways.ways import WAYS, Way
from benchmarks.results import read
from mm01_jax.config.mesh import sharding_problems
from mm01_jax.config.schema import MESH_AXES

ROOT = pathlib.Path(__file__).parents[2]


def test_every_axis_is_run_as_it_is_and_by_copies_and_no_way_twice():
    assert len({way.subject for way in WAYS.values()}) == len(WAYS)
    for axis in (None, *MESH_AXES):
        assert Way(axis) in WAYS.values()
        assert axis is None or Way(axis, copies=True) in WAYS.values()
    for way in WAYS.values():
        config = way.config("bench_1b")
        assert not sharding_problems(config), way.subject
        assert config.train.batch_size == 4 * way.times
    plain, copied = (Way("data", copies=copies).options("gpu") for copies in (False, True))
    assert copied == plain | {"xla_gpu_collective_permute_mode": "COLLECTIVES_PEER_MEMORY"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "--ways=data,expert-permutd"], "no way 'expert-permutd'; did you mean 'expert-permuted'?"),
        (["runs"], "no verb 'runs'; did you mean 'run'?; allowed: warm, run"),
        ([], "warm or run? allowed: warm, run"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_line(arguments, line, capsys):
    with pytest.raises(SystemExit) as ended:
        mesh_ways.main(arguments)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1) and line in said


def test_kernels_are_ours_products_or_others_and_messages_and_copies_none():
    names = ("anonymous_mosaic_gpu_kernel", "nvjet_sm90_tst", "gemm_fusion_dot_3", "loop_add_fusion", "Memcpy D2D")
    events = [
        Event(device, name, "step", at, 2.0) for device in "01" for at, name in enumerate((*names, "ncclDevKernel"))
    ]
    assert by_kind(events) == {"our kernels": 2, "products": 4, "other kernels": 2}


def test_a_way_is_held_against_one_gpu_and_its_losses_only_on_the_same_rows():
    added = {}

    class Turns:
        def add(self, name, rows):
            added[name] = {quantity: value for quantity, value, _ in rows}

        def tell(self, line):
            pass

    one, twice = {"step": 2.0, "speed": 50.0, "loss 0": 10.0}, {"step": 1.0, "speed": 100.0, "loss 0": 10.1}
    found = {Way(None): one}
    for way in (Way(None), Way("data"), Way("data", times=2)):
        mesh_ways._say(Turns(), way, one if way.axis is None else twice, found)
    assert added == {
        "data 2": {"against one": 2.0, "difference": pytest.approx(0.01)},
        "data 2, twice the rows": {"against one": 2.0},
    }


@pytest.mark.slow
def test_ways_are_warmed_and_run_on_two_cpu_devices_with_the_losses_of_one(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    names = ["one", "data-permuted", "sequence-permuted", "expert-gathered-permuted", "tensor-rows-permuted"]
    flags = ["--shapes=tiny", f"--ways={','.join(names)}", "--steps=1", "--seconds=800", "--watch=300", "--at-once=2"]
    for verb in ("warm", "run"):
        command = [sys.executable, "-m", "benchmarks.mesh_ways", verb, *flags, f"--json={tmp_path / 'rows.json'}"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)
    apart = {row.subject: row.value for row in read(tmp_path / "rows.json") if row.quantity == "difference"}
    assert set(apart) == {WAYS[name].subject for name in names if name != "one"}
    assert max(apart.values()) < 5e-6
