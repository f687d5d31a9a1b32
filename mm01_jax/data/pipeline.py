"""The grain graph: row indices -> rows -> batches, made ahead by threads; and host batches to global arrays.

The position of a run in its data is one integer, the next global row index; no iterator is ever saved.
Threads, not processes: grain 0.2.18 workers crash outside `absl.app`, and a row costs microseconds.
"""

import functools
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from mm01_jax.data.batch import Batch
from mm01_jax.data.image_grid import bucket
from mm01_jax.data.packing import Rows
from mm01_jax.data.text import DataError

STEPS_AHEAD = 4096  # steps of one batch size that share a grain graph


def batches(
    rows: Rows,
    start_row: int,
    batch_size_at: Callable[[int], int],
    process_index: int = 0,
    process_count: int = 1,
    *,
    vocab_size: int,
    start_step: int = 0,
    prefetch: int = 2,
) -> Iterator[tuple[int, Batch]]:
    """Yields (next_row, batch) for ever, or until the rows end.

    Step n = `start_step`, `start_step` + 1, ... takes the next `batch_size_at(n)` rows. `batch` holds this process's
    contiguous share of them: arrays (batch_size / process_count, S) of the contract in docs/data.md. `next_row` is
    the position to save once the step is done. In a finite stream the last batch is filled up with padding rows.

    Raises:
      ValueError: a batch size that is not a positive multiple of `process_count`.
      DataError: an id outside [0, vocab_size), a document that cannot be read any more.
    """
    row, step = start_row, start_step
    while rows.num_rows is None or row < rows.num_rows:
        size, steps = _stage(batch_size_at, step)
        if size < 1 or size % process_count:
            raise ValueError(
                f"batch size {size} of step {step} must be a positive multiple of {process_count} processes."
            )
        if rows.num_rows is not None:
            steps = min(steps, -(-(rows.num_rows - row) // size))
        for batch in _graph(rows, row, (size, steps), (process_index, process_count), prefetch):
            check_batch(batch, vocab_size, row)
            row, step = row + size, step + 1
            yield row, batch


def _stage(batch_size_at: Callable[[int], int], step: int) -> tuple[int, int]:
    """The batch size of a step and how many steps it stays (a ramp changes it a few times in a run)."""
    size, steps = batch_size_at(step), 1
    while steps < STEPS_AHEAD and batch_size_at(step + steps) == size:
        steps += 1
    return size, steps


def _graph(
    rows: Rows, first_row: int, stage: tuple[int, int], process: tuple[int, int], prefetch: int
) -> grain.IterDataset:
    """`steps` batches of one size from `first_row` on, this process's share of each."""
    (size, steps), (index, count) = stage, process
    share = size // count

    @functools.lru_cache(maxsize=16)
    def tiles(step: int) -> int:
        """Tiles that every row of a step has, in every process: those of the row with most, rounded up."""
        return bucket(max(rows.num_tiles(first_row + step * size + i) for i in range(size)))

    def row(i: int) -> Batch:
        step, within = divmod(i, share)
        return with_tiles(rows.row(first_row + step * size + index * share + within), tiles(step))

    options = grain.ReadOptions(num_threads=min(prefetch, 8), prefetch_buffer_size=prefetch)
    return grain.MapDataset.range(steps * share).map(row).batch(share).to_iter_dataset(options)


def with_tiles(row: dict[str, np.ndarray], num_tiles: int) -> Batch:
    """A row with its tiles filled up with black ones to `num_tiles`, which no token looks at; with 0 it has none."""
    if num_tiles == 0:
        return Batch(**row | {"tiles": None, "image_index": None})
    have = len(row["tiles"])
    padding = np.zeros((num_tiles - have, *row["tiles"].shape[1:]), np.float32)
    return Batch(**row | {"tiles": np.concatenate([row["tiles"], padding])})


def check_batch(batch: Batch, vocab_size: int, first_row: int) -> None:
    """DataError when an id is outside the vocabulary: on a device the gather would silently clamp it."""
    for name in ("tokens", "targets"):
        ids = getattr(batch, name)
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= vocab_size:
            raise DataError(
                f"{name} of the batch from row {first_row} on have ids {lowest} to {highest}; "
                f"allowed are 0 to {vocab_size - 1} (model.vocab_size={vocab_size})."
            )


def process_share(sharding: jax.sharding.NamedSharding, batch_size: int, sequence_length: int) -> tuple[int, int]:
    """(process_index, process_count) for `batches`: which contiguous share of the rows this process's devices hold.

    Processes that hold the same rows (a mesh whose tensor or sequence axis spans hosts) get the same share.
    """
    shards = sharding.addressable_devices_indices_map((batch_size, sequence_length)).values()
    bounds = sorted({rows.indices(batch_size)[:2] for rows, _ in shards})
    first, last = bounds[0][0], bounds[-1][1]
    share = last - first
    if sum(stop - start for start, stop in bounds) != share or first % share or batch_size % share:
        raise ValueError(f"The rows of this process, {bounds} of {batch_size}, are not one contiguous equal share.")
    return first // share, batch_size // share


def to_global(batch: Batch, sharding: jax.sharding.NamedSharding, batch_size: int, order: np.ndarray) -> Batch:
    """Global arrays (batch_size, ...) from each process's share of the rows; every process calls it.

    `order` (S,) is the position that stands at each place of the arrays (`parallel/sequence_layout.py`).
    """

    def place(array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))

    return _placed(batch, place, sharding, order)


def whole_to_global(batch: Batch, sharding: jax.sharding.NamedSharding, order: np.ndarray) -> Batch:
    """Global arrays from whole batches that every process holds alike: each gives its devices their part."""

    def place(array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return _placed(batch, place, sharding, order)


def _placed(batch: Batch, place: Callable, sharding: jax.sharding.NamedSharding, order: np.ndarray) -> Batch:
    """Each array on its devices: tokens and what is said of them cut as `sharding` says, tiles by rows alone."""
    by_row = jax.sharding.NamedSharding(sharding.mesh, jax.P(sharding.spec[0]))
    tiles = None if batch.tiles is None else place(batch.tiles, by_row)
    rest = batch._replace(tiles=None)
    return jax.tree.map(lambda array: place(array[:, order], sharding), rest)._replace(tiles=tiles)
