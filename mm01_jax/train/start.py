"""How a run begins: fresh, from weights alone, or from its own newest checkpoint that verifies."""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from mm01_jax import checkpoint, cluster
from mm01_jax.config import Config, ConfigError, Problem, fields, saved
from mm01_jax.config.resume import resume_problems
from mm01_jax.data.dataset import Dataset, check_unchanged
from mm01_jax.train import origins, resumed, step, transport_check

Log = Callable[[str], None]


class Start(NamedTuple):
    """A state on the mesh, and the next global row of the data."""

    state: step.TrainState
    row: int


def check_resumable(config: Config, meta: dict[str, Any] | None, init_from: str | None, log: Log) -> None:
    """Compares `config` with the one saved beside the weights that the run begins from, before anything is compiled.

    Args:
      meta: what was saved in the work directory; None where nothing was, and `init_from` is looked at.

    Raises:
      ConfigError: names every value that a resumed run may not change, or every difference from the model in
        `init_from`.
      CheckpointError: `init_from` holds no checkpoint, or a damaged one.
    """
    if meta is None:
        if init_from:
            origins.check(config, init_from, log)
        return
    try:
        before = saved.from_json(json.dumps(meta["config"]))
    except ConfigError as error:
        raise checkpoint.CheckpointError(f"{meta['config_file']}: {error}") from None
    problems = resume_problems(before, config)
    if problems:
        raise ConfigError(problems)
    for key, old, new in fields.differences(before, config):
        log(f"changed since the last checkpoint: {key} {old!r} -> {new!r}")
    if init_from:
        log(f"--init_from={init_from} is not used: this run has begun, it goes on from its own checkpoint")


def check_memory(state: step.TrainState, mesh: Mesh) -> None:
    """Raises ConfigError where a device cannot hold even its share of weights and moments.

    Args:
      state: with shapes, dtypes and shardings.
    """
    device = mesh.local_devices[0]  # another process's says nothing of its memory
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None and device.platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    memory = cluster.least(memory)
    needed = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    if memory is not None and needed > memory:
        got = f"{needed:,} bytes of weights and moments on a device"
        allowed = f"at most {memory:,}, the memory of {device.device_kind}; mm01-plan says what a step needs"
        raise ConfigError([Problem(key="model", got=got, allowed=allowed, nearest="another --config or mesh")])


def with_exchange_settled(config: Config, log: Log) -> Config:
    """The config that the model is built with; the run's own, which is saved, keeps what was asked for."""
    exchange = transport_check.settle(config, log)
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, exchange=exchange))


def begin(
    config: Config,
    mesh: Mesh,
    checkpoints: checkpoint.Checkpoints,
    dataset: Dataset,
    init_from: str | None,
    log: Log,
    *,
    allow_nonfinite: bool = False,
) -> Start:
    """Restores the newest sound step, or loads weights from `init_from`, or initialises.

    Args:
      allow_nonfinite: begin from weights with NaN and infinity, and go on from a step that has them, too.

    Raises:
      DataError: the data is not what the run began with.
      CheckpointError: checkpoints exist and none verifies; weights in `init_from` are not finite.
    """
    abstract = step.abstract_state(config, mesh)
    began = time.monotonic()

    def judge(found: checkpoint.Restored) -> None:
        manifest = checkpoints.manifest_of(found.step)
        resumed.check(found, config, mesh, manifest, allow_nonfinite=allow_nonfinite)

    restored = checkpoints.restore_latest(abstract, judge)
    if restored is not None:
        check_unchanged(restored.meta["data"], dataset.manifest, f"the run in {checkpoints.directory.parent}")
        log(f"resumed from step {restored.step} (verified, {time.monotonic() - began:.1f} s)")
        return Start(restored.state, restored.meta["row"])
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    # Random bits of every weight are long programs that run once: on a CPU optimising them takes 7 x the time to run.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if on_cpu else None
    make = functools.partial(step.init_state, config)
    fresh = functools.partial(
        jax.jit(make, out_shardings=placed, compiler_options=options), jax.random.key(config.train.seed)
    )
    if init_from:
        model = origins.load(config, init_from, abstract.model, lambda: fresh().model)
        if not allow_nonfinite:
            checkpoint.check_finite(init_from, model, mesh, "; --allow-nonfinite takes them as they are")
        log(f"weights from {init_from} (verified, {time.monotonic() - began:.1f} s)")
        make = functools.partial(step.state_of, config)
        return Start(jax.jit(make, out_shardings=placed)(model), 0)
    return Start(fresh(), 0)
