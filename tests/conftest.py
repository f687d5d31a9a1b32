"""Eight CPU devices, strict dtypes and ranks, warnings as errors, one compile cache for every process of a run."""

import gc
import os
import pathlib
import tempfile
from importlib import metadata

from tests.terminal import as_in_a_terminal

# In the environment, so that the commands that tests start compile nothing twice either. A bound on the size makes jax
# lock the folder: several workers and commands share it, and a file half written is read by nobody.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"mm01_jax_compile_cache_{metadata.version('jax')}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(_CACHE),
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 2**30),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

as_in_a_terminal()

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects that live long: looking for rubbish among them every 700 took a tenth of the time.
gc.set_threshold(100_000, 50, 100)

# Spread over workers, whole files are dealt in this order: what takes long must not be what is left at the end.
_LONG_ROOMS = ("parallel", "kernels", "train", "model", "convert", "inference")


def pytest_collection_modifyitems(items):
    def place(item) -> int:
        room = item.path.parent.name
        return _LONG_ROOMS.index(room) if room in _LONG_ROOMS else len(_LONG_ROOMS)

    items.sort(key=place)
