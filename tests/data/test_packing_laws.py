"""Packing: rows are a pure function of their index, and together they are the stream."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mm01_jax.data.packing import GROUP, PackedRows
from mm01_jax.data.shuffle import epoch_order

END = 999


class Lists:
    """Documents held as lists of tokens."""

    end_of_document = END

    def __init__(self, lengths):
        first = np.cumsum([0, *lengths])
        self.lists = [list(range(a, b)) for a, b in zip(first[:-1], first[1:], strict=True)]
        self.num_tokens_D = np.array(lengths, np.int64)

    def tokens(self, document, start, stop):
        return np.array(self.lists[document][start:stop], np.int32)


def stream_of(documents, seed, epochs):
    """(token, document occurrence) pairs, written the slow way."""
    pairs = []
    for epoch in range(epochs):
        for document in epoch_order(len(documents.lists), seed, epoch):
            pairs += [(token, (epoch, int(document))) for token in [*documents.lists[document], END]]
    return pairs


lengths = st.lists(st.integers(1, 20), min_size=1, max_size=8)
sizes = st.integers(1, 17)
seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=150, deadline=None)
@given(lengths, sizes, seeds)
def test_rows_follow_one_another_as_the_stream_over_three_epochs(lengths, S, seed):
    assert_rows_are_the_stream(lengths, S, seed)


def test_rows_of_more_documents_than_are_counted_together_are_the_stream():
    for number in (GROUP - 1, GROUP, 2 * GROUP, 2 * GROUP + 21):
        assert_rows_are_the_stream([i % 7 + 1 for i in range(number)], 33, number)


def assert_rows_are_the_stream(lengths, S, seed):
    documents = Lists(lengths)
    stream = stream_of(documents, seed, 4)
    rows = PackedRows(documents, S, seed)
    for i in range(3 * rows.tokens_per_epoch // S):
        row, here = rows.row(i), stream[i * S : (i + 1) * S + 1]
        assert row["tokens"].tolist() == [token for token, _ in here[:S]]
        assert row["targets"].tolist() == [token for token, _ in here[1:]]
        assert row["weights"].tolist() == [float(a[1] == b[1]) for a, b in zip(here, here[1:], strict=False)]


@settings(max_examples=150, deadline=None)
@given(lengths, sizes, seeds, st.integers(0, 30))
def test_segments_change_exactly_at_documents_and_positions_restart_there(lengths, S, seed, i):
    documents = Lists(lengths)
    rows = PackedRows(documents, S, seed)
    row = rows.row(i)
    at = np.arange(i * S, (i + 1) * S)
    assert row["segments"][0] == 0 and row["positions"][0] == 0
    stream = stream_of(documents, seed, int(at[-1]) // rows.tokens_per_epoch + 1)
    for a, b in zip(range(S - 1), range(1, S), strict=True):
        same = stream[at[a]][1] == stream[at[b]][1]
        assert row["segments"][b] == row["segments"][a] + (0 if same else 1)
        assert row["positions"][b] == (row["positions"][a] + 1 if same else 0)


@settings(max_examples=60, deadline=None)
@given(lengths, sizes, seeds)
def test_rows_are_equal_in_any_order_of_access(lengths, S, seed):
    rows = PackedRows(Lists(lengths), S, seed)
    forwards = [rows.row(i) for i in range(40)]
    for i in np.random.default_rng(0).permutation(40):
        again = PackedRows(Lists(lengths), S, seed).row(int(i)) if i % 7 == 0 else rows.row(int(i))
        for name, array in forwards[i].items():
            np.testing.assert_array_equal(again[name], array, strict=True)


@settings(max_examples=100, deadline=None)
@given(lengths, sizes, seeds)
def test_one_epoch_predicts_every_token_after_each_documents_first_once_and_then_pads(lengths, S, seed):
    rows = PackedRows(Lists(lengths), S, seed, epochs=1)
    made = [rows.row(i) for i in range(rows.num_rows + 2)]
    joined = {name: np.concatenate([row[name] for row in made]) for name in made[0]}
    predicted = joined["targets"][joined["weights"] > 0]
    wanted = [token for document in Lists(lengths).lists for token in [*document[1:], END]]
    assert sorted(predicted.tolist()) == sorted(wanted)
    assert made[rows.num_rows - 1]["segments"].max() >= 0
    for row in made[rows.num_rows :]:
        assert (row["segments"] == -1).all() and (row["weights"] == 0).all() and (row["tokens"] == 0).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), seeds, st.integers(0, 1000))
def test_an_epoch_order_has_every_document_once(num_documents, seed, epoch):
    assert sorted(epoch_order(num_documents, seed, epoch)) == list(range(num_documents))


def test_epochs_and_seeds_have_different_orders():
    orders = [epoch_order(1000, seed, epoch).tobytes() for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_the_order_of_an_epoch_never_changes():
    # Written down once: a run that resumes under another NumPy or another release finds its place again.
    assert epoch_order(8, 0, 0).tolist() == [1, 5, 3, 2, 0, 6, 7, 4]


def test_a_row_far_into_a_five_million_token_document_reads_only_its_own_tokens():
    class Huge:
        end_of_document = END
        num_tokens_D = np.array([5_000_000, 3], np.int64)
        asked = []

        def tokens(self, document, start, stop):
            self.asked.append(stop - start)
            return np.arange(start, stop, dtype=np.int32)

    documents = Huge()
    row = PackedRows(documents, 64, 0).row(60_000)
    assert np.diff(row["tokens"]).tolist() == [1] * 63 and row["positions"].tolist() == list(range(64))
    assert documents.asked == [65]


def test_row_indices_beyond_int32_are_rows_of_later_epochs():
    rows = PackedRows(Lists([3, 4]), 9, 0)  # an epoch is one row
    np.testing.assert_array_equal(np.sort(rows.row(2**40)["tokens"]), np.sort(rows.row(0)["tokens"]))


def test_arrays_of_a_row_have_the_dtypes_of_the_contract():
    row = PackedRows(Lists([3, 4]), 5, 0).row(0)
    dtypes = {name: array.dtype for name, array in row.items()}
    ints = dict.fromkeys(("tokens", "targets", "positions", "segments"), np.dtype(np.int32))
    assert dtypes == ints | {"weights": np.dtype(np.float32)} and {a.shape for a in row.values()} == {(5,)}
