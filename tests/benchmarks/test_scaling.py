"""The tables of a host's scaling: which meshes, of what sizes, and that each table is made whole on CPU devices."""

import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.results import read
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import cases, exchange

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(("devices", "count"), [(2, 4), (4, 10), (8, 14)])
def test_every_mesh_of_a_host_once(devices, count):
    meshes = cases.meshes(devices)
    assert len({*meshes}) == len(meshes) == count
    assert all(math.prod(size for _, size in mesh) == devices for mesh in meshes)


def test_weak_scaling_gives_every_gpu_the_rows_of_one():
    alone, strong, weak = (
        cases.config_of(cases.Case("bench_1b", scaling, mesh, 8))
        for scaling, mesh in (("strong", ()), ("strong", (("data", 4),)), ("weak", (("data", 4),)))
    )
    assert alone.train.batch_size == strong.train.batch_size == 8
    assert weak.train.batch_size == 4 * 8
    assert strong.mesh.data == 4


def test_a_period_of_the_released_model_has_its_widths_and_an_expert_for_each_shard():
    config = cases.config_of(cases.Case("text_01_period", "strong", (("expert", 8),)))
    assert (config.model.embed_dim, config.model.expert_dim, config.model.num_heads) == (6144, 9216, 64)
    assert (config.model.num_periods, config.model.num_experts) == (1, 8)
    assert config.mesh.expert == 8


@pytest.mark.parametrize("shape", ["bench_1b", "text_01_period", "tiny"])
def test_every_mesh_of_a_host_divides_its_shape(shape):
    from mm01_jax.config.mesh import sharding_problems

    for devices in (2, 4, 8):
        for mesh in cases.meshes(devices):
            assert not sharding_problems(cases.config_of(cases.Case(shape, "strong", mesh, max(cases.ROWS, devices))))


def test_a_row_is_as_long_as_its_gpus_hold_together():
    config = cases.config_of(cases.Case("bench_1b", "row", (("sequence", 8),), 1, 16_384))
    assert (config.train.batch_size, config.train.sequence_length) == (1, 8 * 16_384)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_skewed_routing_sends_as_many_rows_as_even_and_no_more_than_a_buffer_holds(shards):
    sent = {name: routing(1000, 0.8, shards) for name, routing in exchange.ROUTINGS.items()}
    assert np.array_equal(*(rows.sum(axis=1) for rows in sent.values()))
    assert {name: rows.max() for name, rows in sent.items()} == {"even": 800, "skewed": 1000}


# Of each table what it was asked beside its name, and quantities of one subject that show that it ran to its end.
TRIED = {
    "meshes": (["--steps=1", "--axes=1", "--scaling=strong"], {"planned best", "step", "against one", "difference"}),
    "longest": (["--lengths=64,128"], {"speed", "against one"}),
    "exchange": ([], {"there and back", "other than padded's"}),
    "restart": ([], {"exit codes", "restored on expert 2", "losses of the next start on expert 2"}),
    "serve": ([], {"step", "speed", "step, planned/measured"}),
    "plans": (["--shapes-alone", "--axes=1", "--devices=2"], {"planned memory"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("table", TRIED)
def test_each_table_is_made_whole_on_two_cpu_devices(table, tmp_path):
    flags, quantities = TRIED[table]
    command = ["benchmarks.scaling", table, "--shapes=tiny", f"--json={tmp_path / 'rows.json'}", "--at-once=2", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=True, timeout=900)
    found: dict[str, dict] = {}
    for row in read(tmp_path / "rows.json"):
        found.setdefault(row.subject, {})[row.quantity] = row.value
    assert any(quantities <= {*rows} for rows in found.values()), found
    not_run = {subject for subject, rows in found.items() if "not run" in rows}
    assert all("ragged" in subject for subject in not_run), found  # which CPUs do not have
    for rows in found.values():
        assert rows.get("restored on one GPU", "the same bits") == rows.get("restored on expert 2", "the same bits")
        assert rows.get("restored on expert 2", "the same bits") == "the same bits"
        assert rows.get("the others ended after", 0) < 60


def test_a_shape_that_a_table_does_not_have_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        scaling.main(["serve", "--shapes=bench_1b"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("no shape of serve 'bench_1b'; allowed: text_01, tiny\n")
