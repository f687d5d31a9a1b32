"""Compiles a step for a machine that is not here: libtpu's compile-only client, or jax's CUDA plugin without a GPU."""

import contextlib
import dataclasses
import importlib.util
import re
import resource
import string
import time
from collections.abc import Sequence

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from mm01_jax.plan.steps import Step
from mm01_jax.plan.targets import Target

# What XLA has to know of an H100 or H200 SXM, one processor with two memories (NVIDIA's data sheets; compute capability
# 9.0 with its own instructions).
_HOPPER = string.Template("""
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: $speed
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: $memory
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "$name"
""")
# Bytes/s of the memory, the name by which the driver knows the device.
_GPUS = {"h100": (3352320000000, "NVIDIA H100 80GB HBM3"), "h200": (4800000000000, "NVIDIA H200")}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said. Bytes are one chip's; `refusal` is the compiler's sentence when it does not fit.

    seconds: trace, lower, compile by the clock, and the processor time of all three. host_bytes: the most memory that
      this process has held.
    """

    refusal: str | None
    text: str
    memory: dict[str, int]
    seconds: dict[str, float]
    host_bytes: int


def devices(target: Target) -> Sequence[jax.Device]:
    """The devices of a machine that is not here.

    Raises:
      ValueError: the compiler for it is not installed; the message says how it is.
    """
    package, extra = ("libtpu", "tpu-aot") if target.platform == "tpu" else ("jax_cuda13_plugin", "gpu-aot")
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{target.name} needs {package}, which is not installed here: pip install 'mm01_jax[{extra}]'; "
            "or --no-compile for shapes alone"
        )
    if target.platform == "tpu":
        slices = {"num_slices": target.slices} if target.slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology, **slices).devices
    options = {"target_config": gpu_config(target), "topology": target.topology}
    return topologies.get_topology_desc(platform="cuda", topology_name=target.generation, **options).devices


def gpu_config(target: Target) -> str:
    """What XLA has to know of the GPUs of a target, as the text of its GpuTargetConfigProto."""
    speed, name = _GPUS[target.generation]
    return _HOPPER.substitute(speed=speed, memory=target.chip.hbm, name=name)


def compile_step(step: Step) -> Compiled:
    """Compiles a step under the mesh in force, and reports a refusal for memory instead of raising it."""
    seconds, text, memory, refusal = {}, "", {}, None
    start, start_processor = time.perf_counter(), time.process_time()
    traced = step.function.trace(*step.arguments)
    seconds["trace"] = time.perf_counter() - start
    lowered = traced.lower()
    seconds["lower"] = time.perf_counter() - start - seconds["trace"]
    start = time.perf_counter()
    try:
        with no_compilation_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = _sentence(str(error))
    else:
        text, memory = compiled.as_text(), _memory(compiled.memory_analysis())
    seconds["compile"] = time.perf_counter() - start
    seconds["processor"] = time.process_time() - start_processor
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Compiled(refusal, text, memory, seconds, most)


@contextlib.contextmanager
def no_compilation_cache():
    """Programs for machines that are not here can be written to the persistent cache, and not read back."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether the cache is in use is asked once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _memory(stats) -> dict[str, int]:
    fields = {"arguments": "argument", "temporaries": "temp", "outputs": "output", "donated": "alias"}
    sizes = {name: getattr(stats, f"{field}_size_in_bytes") for name, field in fields.items()}
    return {**sizes, "peak": stats.peak_memory_in_bytes}


def _sentence(error: str) -> str:
    """The part of an out-of-memory error that says how much, and the largest things in it."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    sizes = [line for line in lines[1:] if re.search(r"(Used|Exceeded|Total|Size:|Operator:|Shape:)", line)]
    return "\n    ".join([lines[0], *sizes[:12]])
