"""What the processes of a run must decide together, so that none waits for one that has given up."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def agree(failure: Exception | None, kind: type[Exception]) -> None:
    """Raises on every process when one of them failed: its own exception there, `kind` on the others."""
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failed.any() and failure is None:
            failure = kind(f"process {int(np.argmax(failed))} reports a failure")
    if failure is not None:
        raise failure


def any_of(here: bool) -> bool:
    """Whether it is so on one process at least."""
    return here if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(here)).any())


def add(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Each process's parts of the digests, added mod 2^32 over the processes."""
    if jax.process_count() == 1:
        return parts
    return [np.sum(part, axis=0, dtype=np.uint32) for part in multihost_utils.process_allgather(parts)]
