"""Work on many tensors with few threads and bounded memory."""

import concurrent.futures
import os
from collections.abc import Callable, Iterable
from typing import Any

BIG_BYTES = 2**30  # a tensor like the embedding is worked on alone


def for_each(items: Iterable[Any], nbytes: Callable[[Any], int], work: Callable[[Any], Any]) -> list[Any]:
    """`work(item)` of every item, in order of the items; big items alone, the rest on a few threads.

    The first exception is raised after the work under way has ended; nothing new is started.
    """
    items = list(items)
    results = {}
    for i, item in enumerate(items):
        if nbytes(item) >= BIG_BYTES:
            results[i] = work(item)
    small = [(i, item) for i, item in enumerate(items) if i not in results]
    # More threads than processors: while one waits for the disk, another hashes.
    with concurrent.futures.ThreadPoolExecutor(min(4, 2 * (os.cpu_count() or 1))) as pool:
        futures = {pool.submit(work, item): i for i, item in small}
        try:
            for future in concurrent.futures.as_completed(futures):
                results[futures[future]] = future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [results[i] for i in range(len(items))]
