"""Runs that go bad, of `nonfinite.py`."""

import atexit
import functools
import json
import pathlib
import shutil
import tempfile

from tests.faults import nonfinite
from tests.faults.forked import Server

WORDS = "no bad rate, weight or batch reaches a checkpoint, and the last good step is restored"
EVERY = 50
MEMBERS = nonfinite.cases()


@functools.cache
def _server() -> Server:
    """Programs are compiled without optimising, as a few steps are run, and those that are alike once."""
    cache = tempfile.mkdtemp(prefix="fault-programs-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    settings = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    server = Server("tests.faults.nonfinite", environment=settings).__enter__()
    atexit.register(server.__exit__)
    return server


def judge(bad: dict[str, object], room: pathlib.Path) -> str | None:
    ended = _server().call("tests.faults.nonfinite:run", json.dumps(bad), str(room), room=room, seconds=300.0)
    good = ended.code == 0 and "Traceback" not in ended.told and not ended.outside
    return None if good else f"{bad}: exit {ended.code}: {ended.told[-600:]} {ended.outside}"
