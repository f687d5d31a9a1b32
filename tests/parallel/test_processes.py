"""Two processes, found by jax's own detection (here: Open MPI's variables), train one model and save it together."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.data import conversation_data

ROOT = pathlib.Path(__file__).parents[2]
DRIVER = """
import dataclasses, functools, sys
import jax
from mm01_jax import cluster
joined = cluster.join()
import numpy as np
from configs import tiny
from mm01_jax import checkpoint, sharding
from mm01_jax.config import MESH_AXES, saved
from mm01_jax.config import MeshConfig
from mm01_jax.data.batch import Batch
from mm01_jax.train import step
import json

workdir, source, steps, *sizes = sys.argv[1:]
tiny = tiny.get_config()
model = dataclasses.replace(tiny.model, embed_dim=32, num_periods=1, period=("lightning", "softmax"), head_dim=8,
                            rotary_dim=4, expert_dim=32)
mesh_config = MeshConfig(**dict(zip(MESH_AXES, map(int, sizes))))
train = dataclasses.replace(tiny.train, sequence_length=32, loss_chunk=64)
config = dataclasses.replace(tiny, model=model, train=train, mesh=mesh_config)
meta = {"config": json.loads(saved.to_json(config))}
assert jax.process_count() == (2 if joined else 1) and jax.device_count() == 8
mesh = sharding.make_mesh(mesh_config)
rng = np.random.default_rng(0)

with jax.set_mesh(mesh):
    abstract = step.abstract_state(config, mesh)
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    if source == "new":
        make = functools.partial(step.init_state, config)
        state = jax.jit(make, out_shardings=placed)(jax.random.key(0))
    else:
        with checkpoint.Checkpoints(source) as saved:
            state = saved.restore_latest(abstract).state
    where = sharding.named(mesh, mesh_config.rules, "batch", "seq")
    quick = {"xla_backend_optimization_level": "0"}  # compiles in half the time
    take = jax.jit(functools.partial(step.train_step, config=config), donate_argnums=0, out_shardings=(placed, None),
                   compiler_options=quick)
    for _ in range(int(steps)):
        tokens = rng.integers(0, 256, size=(8, 33)).astype(np.int32)
        rows = Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], segments=np.zeros((8, 32), np.int32),
                     positions=np.tile(np.arange(32, dtype=np.int32), (8, 1)), weights=np.ones((8, 32), np.float32))
        batch = jax.tree.map(lambda v: jax.make_array_from_callback(v.shape, where, lambda i: v[i]), rows)
        state, metrics = take(state, batch)
        print("loss", float(metrics["loss"]), flush=True)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(int(state.step), state, meta)
        checkpoints.wait()
"""


def start(command: list, processes: int, devices: int = 8) -> list[str]:
    """What each process printed."""
    running = launch(command, processes, devices)
    try:
        outputs = [process.communicate(timeout=900)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(outputs)
    return outputs


def launch(command: list, processes: int, devices: int = 8) -> list[subprocess.Popen]:
    """Processes that know of each other through Open MPI's environment alone."""
    running = []
    for index in range(processes):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices // processes),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        }
        if processes > 1:
            environment |= {
                # jax makes the coordinator's port of a job number's upper bits: one for each process that starts some.
                "OMPI_MCA_orte_hnp_uri": f"{(os.getpid() % 4000) << 12}.0;tcp://127.0.0.1:41000",
                "OMPI_COMM_WORLD_SIZE": str(processes),
                "OMPI_COMM_WORLD_RANK": str(index),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
            }
        whole = [sys.executable, *map(str, command)]
        running.append(
            subprocess.Popen(
                whole, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return running


def digest(workdir: pathlib.Path) -> str:
    (manifest,) = workdir.glob("checkpoints/*/state/manifest.json")
    return json.loads("{" + manifest.read_text().partition("\n")[2])["tree_sha256"]


@pytest.mark.slow
def test_two_processes_train_and_one_process_restores_the_same_state_on_another_mesh(tmp_path):
    pair, alone, one = tmp_path / "pair", tmp_path / "alone", tmp_path / "one"
    outputs = start(["-c", DRIVER, pair, "new", 3, 2, 2, 2, 1], processes=2)
    assert outputs[0].count("loss") == 3
    assert [line for line in outputs[0].splitlines() if "loss" in line] == [
        line for line in outputs[1].splitlines() if "loss" in line
    ]
    start(["-c", DRIVER, alone, pair, 0, 1, 2, 1, 4], processes=1)  # restored on another mesh, saved again
    assert digest(alone) == digest(pair)
    # And training on two processes was training: one process with the first mesh takes the same steps.
    same = start(["-c", DRIVER, one, "new", 3, 2, 2, 2, 1], processes=1)
    losses = [[float(line.split()[1]) for line in out.splitlines() if "loss" in line] for out in (*outputs, *same)]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


@pytest.mark.slow
def test_two_processes_of_train_main_have_the_losses_of_one_with_rows_in_zigzag_over_both(tmp_path):
    losses = {}
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        mesh = ["--config.mesh.expert=2", "--config.mesh.sequence=2", "--config.compute.sequence_layout=zigzag"]
        size = ["--config.model.num_periods=1", "--config.model.embed_dim=32", "--config.train.eval_batches=1"]
        run = ["train_main.py", "--config=configs/tiny.py", f"--workdir={workdir}", "--config.train.steps=3"]
        outputs = start([*run, *mesh, *size], processes, devices=4)
        assert all("exchange: padded (ragged does not run" in output for output in outputs)
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses[processes] = [r[key] for r in records for key in ("loss", "held_out_loss") if key in r]
    assert len(losses[1]) == 4
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_two_processes_of_train_main_have_the_losses_of_one_on_rows_with_images(tmp_path):
    source, losses = conversation_data.write_array_record(tmp_path), {}
    data = [f"--config.data.source={source}", "--config.data.records=conversations", "--config.data.held_out=0.2"]
    size = [f"--config.train.sequence_length={conversation_data.LENGTH}", "--config.train.batch_size=8"]
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        run = ["train_main.py", "--config=configs/vl_tiny.py", f"--workdir={workdir}", "--config.train.steps=3"]
        mesh = ["--config.mesh.data=2", "--config.mesh.sequence=2", "--config.train.eval_batches=1"]
        start([*run, *mesh, *data, *size], processes, devices=4)
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses[processes] = [r[key] for r in records for key in ("loss", "held_out_loss") if key in r]
    assert len(losses[1]) == 4
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
