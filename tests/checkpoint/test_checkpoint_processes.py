"""Two processes save and restore one state together."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from mm01_jax import checkpoint
from tests.checkpoint.standin import abstract, bits, make_mesh, make_state

PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from mm01_jax import checkpoint
from tests.checkpoint.standin import META, abstract, make_mesh, make_state

def local(state):
    return [np.asarray(s.data).tobytes() for x in jax.tree.leaves(state) for s in x.addressable_shards]

mesh, other = make_mesh(1, 2, 2, 1), make_mesh(1, 1, 2, 2)
with checkpoint.Checkpoints(sys.argv[3], keep=2) as checkpoints:
    for step in map(int, sys.argv[4:]):
        checkpoints.save(step, make_state(mesh, step), META)
    restored = checkpoints.restore_latest(abstract(make_state(other)))
    assert local(restored.state) == local(make_state(other, restored.step))
    print("restored", restored.step)
"""


def run_both(workdir, *steps: int) -> list[str]:
    """What two processes print that save `steps` and then restore the newest."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    commands = [[sys.executable, "-c", PROCESS, address, str(i), str(workdir), *map(str, steps)] for i in (0, 1)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        return [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_processes_save_and_restore_what_one_process_would(tmp_path):
    outputs = run_both(tmp_path, 1, 2, 3)
    assert all("restored 3" in output for output in outputs), "\n".join(outputs)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000003", "retired"]
    expected = make_state(make_mesh(1, 1, 1, 1), seed=3)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert bits(checkpoints.restore_latest(abstract(expected)).state) == bits(expected)
    # The second half of the embedding is read by the second process alone; both must take the step before.
    (tmp_path / "checkpoints/00000003/state/arrays/model.embed/c/1/0").unlink()
    outputs = run_both(tmp_path)
    assert all("restored 2" in output for output in outputs), "\n".join(outputs)
    assert "c/1/0" in outputs[1] and "c/1/0" not in outputs[0]
