"""Samples into rows that cut none: a sample that does not fit into what is left of a row begins the next one.

The samples of an epoch come in that epoch's order, epochs follow one another, and each begins a row of its own. So a
row is a function of its index alone, as in `packing`: lengths are known, and where rows begin follows from them.

    row        <user ...> <ai> y e s <end> | <user ...        S tokens, segments 0, 1, ... by sample, -1 behind them
    weights         0        1 1 1 1   0   | 0                1 where the next token is one of an answer
"""

import functools
import threading
from collections.abc import Sequence

import numpy as np

from mm01_jax.data.packing import Rows
from mm01_jax.data.samples import Samples
from mm01_jax.data.shuffle import epoch_order
from mm01_jax.data.text import DataError


class WholeRows:
    """Rows of S tokens of conversations; `epochs=None` repeats them for ever, each epoch in another order.

    Raises:
      DataError: names the first sample that no row holds.
    """

    def __init__(self, samples: Samples, sequence_length: int, seed: int, epochs: int | None = None):
        self.documents, self.sequence_length, self.seed = samples, sequence_length, seed
        (long,) = np.nonzero(samples.num_tokens_D > sequence_length)
        if len(long):
            tokens, all_of_them = samples.num_tokens_D[long[0]], len(samples.num_tokens_D)
            raise DataError(
                f"{samples.label(int(long[0]))} takes {tokens:,} tokens and samples are never cut; allowed are "
                f"train.sequence_length={sequence_length:,} ({len(long):,} of {all_of_them:,} are longer)."
            )
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self._first_rows = [0]  # of each epoch whose length is known, and of the one behind them
        self._lock = threading.Lock()
        for _ in range(epochs or 0):
            self._next_epoch()
        self.num_rows = None if epochs is None else self._first_rows[-1]

    def row(self, index: int) -> dict[str, np.ndarray]:
        """As `packing.Rows`, and `image_index` (S,), `tiles` (n, 3, side, side)."""
        places = [] if self.num_rows is not None and index >= self.num_rows else self._samples_of(index)
        return self.documents.join([self.documents.sample(i) for i in places], self.sequence_length)

    def num_tiles(self, index: int) -> int:
        """Tiles of a row, known without opening an image."""
        places = [] if self.num_rows is not None and index >= self.num_rows else self._samples_of(index)
        return int(self.documents.num_tiles_D[places].sum())

    def _samples_of(self, index: int) -> Sequence[int]:
        with self._lock:
            while index >= self._first_rows[-1] or len(self._first_rows) == 1:
                self._next_epoch()
        epoch = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        order, starts = self._epoch(epoch)
        within = index - self._first_rows[epoch]
        return order[starts[within] : starts[within + 1]].tolist()

    def _next_epoch(self) -> None:
        rows = len(self._epoch(len(self._first_rows) - 1)[1]) - 1
        self._first_rows.append(self._first_rows[-1] + rows)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """The order of an epoch's samples, and which of them begins each row, ended by their number."""
        order = epoch_order(len(self.documents.num_tokens_D), self.seed, epoch)
        ends = np.cumsum(self.documents.num_tokens_D[order])
        starts = [0]
        while starts[-1] < len(order):
            before = ends[starts[-1] - 1] if starts[-1] else 0
            starts.append(int(np.searchsorted(ends, before + self.sequence_length, side="right")))
        return order, starts


class MixedRows:
    """`between` rows of one kind, then one of another, and so on for ever."""

    def __init__(self, rows: Rows, others: Rows, between: int):
        self.documents, self.num_rows = rows.documents, None
        self._rows, self._others, self._between = rows, others, between

    def row(self, index: int) -> dict[str, np.ndarray]:
        rows, at = self._at(index)
        return rows.row(at)

    def num_tiles(self, index: int) -> int:
        rows, at = self._at(index)
        return rows.num_tiles(at)

    def _at(self, index: int) -> tuple[Rows, int]:
        block, place = divmod(index, self._between + 1)
        if place == self._between:
            return self._others, block
        return self._rows, block * self._between + place
