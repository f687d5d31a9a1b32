"""The grain graph: row indices -> rows -> batches, made ahead by threads; and host batches to global arrays.

The position of a run in its data is one integer, the next global row index; no iterator is ever saved.
Threads, not processes: grain 0.2.18 workers crash outside `absl.app`, and a row costs microseconds.
"""

from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from mm01_jax.data.batch import Batch
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

    def row(i: int) -> Batch:
        step, within = divmod(i, share)
        return Batch(**rows.row(first_row + step * size + index * share + within))

    options = grain.ReadOptions(num_threads=min(prefetch, 8), prefetch_buffer_size=prefetch)
    return grain.MapDataset.range(steps * share).map(row).batch(share).to_iter_dataset(options)


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
    """Global arrays (batch_size, S) from each process's share of the rows; every process calls it.

    `order` (S,) is the position that stands at each place of the arrays (`parallel/sequence_layout.py`).
    """

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))

    return _each(place, batch, order)


def whole_to_global(batch: Batch, sharding: jax.sharding.NamedSharding, order: np.ndarray) -> Batch:
    """Global arrays from whole batches that every process holds alike: each gives its devices their part."""
    return _each(lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), batch, order)


def _each(place: Callable[[np.ndarray], jax.Array], batch: Batch, order: np.ndarray) -> Batch:
    """Every array that is there, placed; what has a token axis in `order` first (tiles have none)."""
    arrays = {name: array for name, array in batch._asdict().items() if array is not None}
    return Batch(**{name: place(array if name == "tiles" else array[:, order]) for name, array in arrays.items()})
