"""Times of asynchronous device work: the median of batches long enough to hide the launch and the clock."""

import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

BATCH_SECONDS = 0.02


def median_seconds(run: Callable[[], object], wait: Callable[[object], object], *, repeats: int = 15) -> float:
    """Seconds of one `run()`: median over `repeats` batches of calls, each ended by `wait` of the last result.

    Calls within a batch are queued one behind the other, so what is timed is the device where it is the slower side.
    """
    wait(run())
    batch = max(1, min(200, math.ceil(BATCH_SECONDS / _batch(run, wait, 1))))
    _batch(run, wait, batch)
    return statistics.median(_batch(run, wait, batch) / batch for _ in range(repeats))


def _batch(run, wait, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    wait(result)
    return time.perf_counter() - start


def copy_bytes_per_second(num_bytes: int) -> float:
    """Bytes read and written per second by an element-wise pass over `num_bytes`: what this device calls full speed."""
    x = jnp.ones(num_bytes // 4, jnp.float32)
    negate = jax.jit(jnp.negative)
    return 2 * x.nbytes / median_seconds(lambda: negate(x), jax.block_until_ready)
