"""A long line of JSON costs few times its own size."""

import gzip
import io
import time
import tracemalloc

import pytest

from mm01_jax.data import text
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_of_a_long_line_few_copies_are_made_and_none_is_kept(tmp_path, kind):
    def found(lines: bytes) -> list:
        (tmp_path / f"a.{kind}").write_bytes(lines if kind == "jsonl" else gzip.compress(lines))
        tracemalloc.start()
        (shard,) = find_shards(f"{tmp_path}/a.{kind}", "text")
        return list(shard.scan(lambda size: None))

    line = b'{"text": "' + b"a" * (1 << 23) + b'"}\n'
    sizes = [record.size for record in found(line * 2)]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [1 << 23] * 2 and most < 4.5 * len(line)
    longer = found(b'{"text": "' + b"a" * (1 << 24) + b'"}\n' + line)
    tracemalloc.stop()
    assert [record.size for record in longer] == [0, 1 << 23]
    assert "more than 16,777,216 bytes; as a .txt file a document may be longer" in longer[0].problem


def test_a_long_line_of_holes_ends_the_file_at_once(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(b'{"text": "one"}\n')
        for number in range(1, 200):
            file.seek(number << 26)
            file.write(b"\n")
    (shard,) = find_shards(f"{tmp_path}/a.jsonl", "text")
    start = time.process_time()
    with pytest.raises(DataError, match="a.jsonl: is mostly holes: "):
        list(shard.scan(lambda size: None))
    (tmp_path / "a.jsonl").write_bytes((b'{"text": "one"}\n' + bytes(1 << 25) + b"\n") * 2)
    with pytest.raises(DataError, match="line 2 has 16,777,217 bytes and more, and a NUL byte among them: no text"):
        list(shard.scan(lambda size: None))
    assert time.process_time() - start < 1.0


def test_a_file_that_gives_nothing_to_who_does_not_wait_is_empty(tmp_path, monkeypatch):
    """A device behind a link may be a regular file by its kind (of /proc), and its read, without waiting, None."""

    class Nothing(io.BytesIO):
        def fileno(self):
            return there.fileno()

        def read(self, size=-1):
            return None

    (tmp_path / "a.txt").write_text("text")
    (shard,) = find_shards(str(tmp_path / "a.txt"), "text")
    with open(tmp_path / "a.txt", "rb") as there:
        monkeypatch.setattr(type(text.FILES), "open", lambda *given, **how: Nothing())
        (record,) = shard.scan(lambda size: None)
    assert record.problem == "it is empty"
