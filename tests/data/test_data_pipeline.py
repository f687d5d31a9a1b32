"""Batches: the same rows whatever the hosts, threads, batch sizes and interruptions."""

import hashlib
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mm01_jax.config import DataConfig
from mm01_jax.data.batch import Batch
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.packing import PackedRows
from mm01_jax.data.pipeline import batches, process_share, to_global

S, V = 128, 257


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(DataConfig(), S, V)


def take(count, rows, start_row, batch_size_at, *process, **kwargs):
    return list(itertools.islice(batches(rows, start_row, batch_size_at, *process, vocab_size=V, **kwargs), count))


def digest(made):
    """sha256 of the rows of a list of batches, and nothing of how they were grouped."""
    sha = hashlib.sha256()
    for arrays in zip(*map(jax.tree.leaves, made), strict=True):
        sha.update(np.concatenate(arrays).tobytes())
    return sha.hexdigest()


def ramp(step):
    return 4 if step < 50 else 8 if step < 120 else 12


def test_one_two_and_four_hosts_make_the_same_200_global_batches(dataset):
    digests = []
    for hosts in (1, 2, 4):
        shares = [take(200, dataset.train, 0, ramp, host, hosts) for host in range(hosts)]
        assert len({tuple(row for row, _ in share) for share in shares}) == 1
        joined = [
            jax.tree.map(lambda *arrays: np.concatenate(arrays), *(batch for _, batch in at_once))
            for at_once in zip(*shares, strict=True)
        ]
        assert [len(batch.tokens) for batch in joined] == [ramp(step) for step in range(200)]
        digests.append(digest(joined))
    assert len(set(digests)) == 1


def test_prefetching_threads_change_nothing(dataset):
    made = {digest([b for _, b in take(60, dataset.train, 7, lambda step: 6, prefetch=n)]) for n in (0, 1, 2, 4, 20)}
    assert len(made) == 1


def test_a_batch_size_ramp_neither_repeats_nor_skips_a_row(dataset):
    made = take(130, dataset.train, 0, ramp)
    total = sum(ramp(step) for step in range(130))
    assert made[-1][0] == total
    assert digest([b for _, b in made]) == digest(
        [Batch(**{k: v[None] for k, v in dataset.train.row(i).items()}) for i in range(total)]
    )


def test_a_run_that_stops_at_any_step_goes_on_with_the_next_row(dataset):
    whole = take(130, dataset.train, 0, ramp)
    for stop in (1, 49, 50, 51, 119, 120):
        resumed = take(130 - stop, dataset.train, whole[stop - 1][0], ramp, start_step=stop)
        assert [row for row, _ in resumed] == [row for row, _ in whole[stop:]]
        assert digest([b for _, b in resumed]) == digest([b for _, b in whole[stop:]])


def test_an_evaluation_ends_after_one_epoch_with_a_padded_batch(dataset):
    rows = dataset.held_out
    made = take(10**9, rows, 0, lambda step: 5)
    assert len(made) == -(-rows.num_rows // 5)
    assert sum(float(batch.weights.sum()) for _, batch in made) == rows.documents.num_tokens_D.sum()
    assert all(batch.tokens.shape == (5, S) for _, batch in made)
    assert all(batch.weights.sum() > 0 for _, batch in made)


def test_the_first_rows_of_an_evaluation_are_a_sample_of_its_documents(dataset):
    first = [dataset.held_out.row(i)["tokens"].tobytes() for i in range(dataset.held_out.num_rows)]
    stream = [dataset.held_out.stream.row(i)["tokens"].tobytes() for i in range(dataset.held_out.num_rows)]
    assert sorted(first) == sorted(stream) and len(set(first[:20]) & set(stream[:20])) < 10


def test_padding_has_no_weight_and_a_negative_segment(dataset):
    for _, batch in take(10**9, dataset.held_out, 0, lambda step: 64):
        padding = batch.segments < 0
        assert (batch.weights[padding] == 0).all() and (batch.positions[padding] == 0).all()


@pytest.mark.parametrize(("size", "hosts"), [(6, 4), (0, 1), (-4, 1)])
def test_a_batch_size_that_hosts_cannot_share_is_refused(dataset, size, hosts):
    with pytest.raises(
        ValueError, match=f"batch size {size} of step 0 must be a positive multiple of {hosts} processes"
    ):
        take(1, dataset.train, 0, lambda step: size, 0, hosts)


def test_a_long_run_of_one_batch_size_goes_on_where_its_graph_ends(dataset, monkeypatch):
    monkeypatch.setattr("mm01_jax.data.pipeline.STEPS_AHEAD", 7)
    short = take(20, dataset.train, 0, lambda step: 2)
    monkeypatch.undo()
    assert digest([b for _, b in short]) == digest([b for _, b in take(20, dataset.train, 0, lambda step: 2)])


def test_leaving_an_iterator_early_does_not_hold_up_the_program():
    code = (
        "from tests.data.test_data_pipeline import *\n"
        "it = batches(open_dataset(DataConfig(), S, V).train, 0, ramp, vocab_size=V, prefetch=8)\n"
        "print(next(it)[0])"
    )
    shown = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "4\n", "")


def mesh(data, sequence):
    return jax.make_mesh(
        (data, sequence), ("data", "sequence"), (AxisType.Auto,) * 2, devices=jax.devices()[: data * sequence]
    )


@pytest.mark.parametrize(("data", "sequence"), [(1, 1), (4, 1), (2, 2), (1, 4), (8, 1)])
def test_global_arrays_hold_the_host_batch_on_every_mesh(dataset, data, sequence):
    ((_, batch),) = take(1, dataset.train, 0, lambda step: 8)
    sharding = NamedSharding(mesh(data, sequence), P("data", "sequence"))
    made = to_global(batch, sharding, 8, np.arange(S))
    for array, host in zip(*map(jax.tree.leaves, (made, batch)), strict=True):
        assert array.sharding == sharding and array.dtype == host.dtype
        np.testing.assert_array_equal(np.asarray(array), host)


@pytest.mark.parametrize(("data", "sequence"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_one_process_holds_all_rows_of_every_mesh(data, sequence):
    assert process_share(NamedSharding(mesh(data, sequence), P("data", "sequence")), 8, S) == (0, 1)


class FourProcesses:
    """A sharding as one of four processes of two devices sees it."""

    def __init__(self, rows):
        self.rows = rows

    def addressable_devices_indices_map(self, shape):
        return {i: (rows, slice(None)) for i, rows in enumerate(self.rows)}


def test_a_process_takes_the_rows_that_its_devices_hold():
    assert process_share(FourProcesses([slice(4, 6), slice(6, 8)]), 16, S) == (1, 4)
    assert process_share(FourProcesses([slice(8, 16), slice(8, 16)]), 16, S) == (1, 2)
    assert process_share(FourProcesses([slice(None), slice(None)]), 16, S) == (0, 1)
    with pytest.raises(ValueError, match="not one contiguous equal share"):
        process_share(FourProcesses([slice(0, 2), slice(8, 10)]), 16, S)


def test_rows_are_made_from_the_documents_alone(dataset):
    again = PackedRows(dataset.train.documents, S, 0)
    for name, array in again.row(12345).items():
        np.testing.assert_array_equal(array, dataset.train.row(12345)[name], strict=True)
