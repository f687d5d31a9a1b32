"""The ways that `benchmarks.mesh_ways` compares: each a config that divides, and messages that say what lax's say."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.exposed import Event
from benchmarks.mesh_messages import by_kind
from benchmarks.mesh_ways import __main__ as mesh_ways
from benchmarks.mesh_ways import permutes
from benchmarks.mesh_ways.ways import WAYS, Way
from benchmarks.results import read
from mm01_jax.config.mesh import sharding_problems
from mm01_jax.config.schema import MESH_AXES

ROOT = pathlib.Path(__file__).parents[2]


def test_every_axis_is_run_as_it_is_and_by_copies_and_no_way_twice():
    assert len({way.subject for way in WAYS.values()}) == len(WAYS)
    for axis in (None, *MESH_AXES):
        assert Way(axis) in WAYS.values()
        assert axis is None or Way(axis, "all") in WAYS.values()
    for way in WAYS.values():
        config = way.config("bench_1b")
        assert not sharding_problems(config), way.subject
        assert config.train.batch_size == 4 * way.times
    plain, copied = (Way("data", copies).options("gpu") for copies in ("nothing", "sums"))
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


# Of each message the function of lax and its arguments.
MESSAGES = {
    "gather": ("all_gather", {"axis": 0, "tiled": True}),
    "stack": ("all_gather", {"axis": 1}),
    "sum": ("psum_scatter", {"scatter_dimension": 1, "tiled": True}),
    "exchange": ("all_to_all", {"split_axis": 0, "concat_axis": 0, "tiled": True}),
}


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("message", MESSAGES)
def test_permutes_say_what_laxs_messages_say_gradients_too(message, shards):
    name, told = MESSAGES[message]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:shards]), ("data",))
    x_RD = jnp.asarray(np.random.default_rng(0).normal(size=(shards * shards, 8)), "float32")

    def differentiated(collective):
        """A loss that weighs each shard's copy and each place in it differently, so that none may be exchanged."""

        def sent(x):
            got = collective(x, "data", **told)
            place = jnp.arange(got.size, dtype=jnp.float32).reshape(got.shape)
            return jnp.sin(got * (1.0 + place / got.size + lax.axis_index("data").astype(jnp.float32))).reshape(1, -1)

        run = jax.shard_map(sent, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))

        def loss(x):
            out = run(x)
            return jnp.sum(out), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(x_RD)

    ours, laxs = differentiated(getattr(permutes, name)), differentiated(permutes.PLAIN[name])
    assert "collective_permute" in ours.as_text() and "collective_permute" not in laxs.as_text()
    for one, other in zip(*(jax.tree.leaves(program.compile()(x_RD)) for program in (ours, laxs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


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
