"""Joins the processes of one run, by jax's own detection: SLURM, Open MPI, GKE, Cloud TPU. No launcher of ours.

Training and every command that runs a model call it; of several processes each then sees all devices.
"""

import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from mm01_jax import job, pulse

HEARTBEAT_SECONDS = 45  # after which jax aborts the others of a dead process; `pulse` has long been sooner (jax: 100)


def join(*, saves: bool = False) -> bool:
    """Connects this process with the others of its job; False where it is alone. Call it before anything else of jax.

    Inside a program that has used jax already (a notebook, a test) nothing is joined: that was for the program to do.

    Args:
      saves: SIGTERM is noted by jax, for all processes to save and end at one step (`train/preemption.py`). Otherwise
        it ends the process that gets it, and the others soon after (`pulse`).

    Raises:
      RuntimeError: a cluster is there and its processes do not find each other.
      ValueError: JAX_PLATFORMS names devices that are not here.
    """
    jax.config.update("jax_enable_preemption_service", saves)
    already = jax.distributed.is_initialized()
    joined = _join()
    try:
        jax.devices()
        if joined:
            job.set_process(jax.process_index(), jax.process_count())
            if not already and job.is_one_of_several():  # otherwise whether a process ends is for the program to say
                pulse.start(multihost_utils.distributed.global_state)
    except (AssertionError, RuntimeError) as error:  # jax asserts that of several platforms one is there
        named = os.environ.get("JAX_PLATFORMS", "")
        if not named:
            raise
        why = " ".join(str(error).split())[:200] or "no such device"
        raise ValueError(f"JAX_PLATFORMS={named}: no device of it here ({why}); nearest: leave it unset") from None
    return joined


def _join() -> bool:
    if jax.distributed.is_initialized():
        return True
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        # What jax says where it detects no cluster: nobody gave it an address.
        if "coordinator_address" not in str(error):
            raise
        return False
    except RuntimeError as error:
        if "before any JAX calls" not in str(error):
            raise
        return False
    return True


def least(nbytes: int | None) -> int | None:
    """The smallest of what the processes know, None where one knows nothing: what is decided by it is decided alike.

    All of several processes call it; they get whole MiB.
    """
    if jax.process_count() == 1:
        return nbytes
    mib = int(multihost_utils.process_allgather(np.int32(-1 if nbytes is None else nbytes >> 20)).min())
    return None if mib < 0 else mib << 20


def is_first() -> bool:
    """Whether this process prints and writes what all of them have."""
    return jax.process_index() == 0


def let_the_first_print() -> None:
    """From here on only the first process says anything on stdout; errors are said by the one that has them."""
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process is
