"""A long line of JSON costs few times its own size."""

import gzip
import tracemalloc

import pytest

from mm01_jax.data.sources import find_shards


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_of_a_long_line_few_copies_are_made_and_none_is_kept(tmp_path, kind):
    line = b'{"text": "' + b"a" * (1 << 23) + b'"}\n'
    (tmp_path / f"a.{kind}").write_bytes(line * 2 if kind == "jsonl" else gzip.compress(line * 2))
    (shard,) = find_shards(f"{tmp_path}/a.{kind}", "text")
    tracemalloc.start()
    sizes = [record.size for record in shard.scan(lambda size: None)]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [1 << 23] * 2 and most < 4.5 * len(line)
