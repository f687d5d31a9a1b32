"""One process for all kinds that take real training steps: a few each, of many configs."""

import atexit
import functools
import shutil
import tempfile

from tests.faults.forked import Server


@functools.cache
def server() -> Server:
    """Programs are compiled without optimising, as a few steps are run, and those that are alike once."""
    cache = tempfile.mkdtemp(prefix="fault-programs-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    settings = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    made = Server("tests.faults.nonfinite", "tests.faults.odd_configs", environment=settings).__enter__()
    atexit.register(made.__exit__)
    return made
