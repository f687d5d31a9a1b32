"""Odd configs, of `odd_configs.py`."""

import atexit
import functools
import json
import pathlib
import shutil
import tempfile

from tests.faults import odd_configs
from tests.faults.forked import Server

WORDS = "a config whose values are at the ends of what they may be runs three steps, or is refused by name"
EVERY = 200
MEMBERS = odd_configs.cases()


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
    server = Server("tests.faults.odd_configs", environment=settings).__enter__()
    atexit.register(server.__exit__)
    return server


def judge(odd: dict[str, object], room: pathlib.Path) -> str | None:
    ended = _server().call("tests.faults.odd_configs:run", json.dumps(odd), str(room), room=room, seconds=300.0)
    if ended.code or "Traceback" in ended.told or ended.hung:
        return f"{odd}: exit {ended.code}: {ended.told[-800:]}"
    print(f"{odd}: {ended.told.splitlines()[-1]}"[:300]) if "refused with" in ended.told else None
    return f"{odd} wrote {ended.outside}" if ended.outside else None
