"""Pairs of answers: the preferred one is learnt, the rejected one is the same sample with another end."""

import json
import re

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mm01_jax.data.conversation_files import pack_record
from mm01_jax.data.text import DataError
from tests.data import conversation_data as data


def write(folder, records: list[dict]):
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder / "a.jsonl"


def pair(number: int) -> dict:
    (asked, answered) = data.conversation(number, images=1)
    return {"messages": [asked, answered], "images": ["a.png"], "rejected": f"it may be {number} or more."}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(data.png(20, 20, seed=0))
    return tmp_path


def opened(source, **changes):
    return data.opened(source, records="pairs", **changes)


def test_both_sides_of_a_pair_begin_alike_and_end_in_their_answers(folder):
    samples = opened(write(folder, [pair(3)])).train.documents
    preferred, rejected = samples.sample(0), samples.rejected(0)
    begin = int(np.argmax(preferred.answer))
    assert begin == int(np.argmax(rejected.answer))
    for name in ("ids", "answer", "image_index"):
        assert np.array_equal(getattr(preferred, name)[:begin], getattr(rejected, name)[:begin])
    assert np.array_equal(preferred.tiles, rejected.tiles)
    assert bytes(preferred.ids[preferred.answer].tolist()) == b"it is 3.\xfe"
    assert bytes(rejected.ids[rejected.answer].tolist()) == b"it may be 3 or more.\xfe"


def test_rows_of_pairs_are_those_of_the_preferred_answers(folder):
    records = [pair(number) for number in range(8)]
    pairs = opened(write(folder, records)).train
    (folder / "plain").mkdir()
    (folder / "plain" / "a.png").write_bytes((folder / "a.png").read_bytes())
    plain = [{key: value for key, value in record.items() if key != "rejected"} for record in records]
    alone = data.opened(write(folder / "plain", plain)).train
    for index in range(4):
        row, expected = pairs.row(index), alone.row(index)
        assert all(np.array_equal(row[name], expected[name]) for name in row)


def test_pairs_in_lines_and_in_records_give_the_same_samples(folder):
    source, image = write(folder, [pair(5)]), (folder / "a.png").read_bytes()
    writer = ArrayRecordWriter(str(folder / "a.arrayrecord"), "group_size:4")
    writer.write(pack_record(pair(5)["messages"], [image], pair(5)["rejected"]))
    writer.close()
    lines, packed = (opened(path).train.documents for path in (source, folder / "a.arrayrecord"))
    for one, other in ((lines.sample(0), packed.sample(0)), (lines.rejected(0), packed.rejected(0))):
        assert all(map(np.array_equal, one, other))


WRONG = {
    "no second answer": ({"rejected": None}, "rejected is None; of a pair it is the text of the answer not preferred"),
    "the same answer twice": ({"rejected": "it is 3."}, "its two answers are the same"),
    "an image in an answer": ({"rejected": "<image>"}, "the images of a pair stand before its two answers"),
    "a question at the end": (
        {"messages": data.conversation(3, images=1)[:1]},
        "its last message is of the user; of a pair it is the preferred answer",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_pair_is_refused_by_line(what, folder):
    changes, message = WRONG[what]
    with pytest.raises(DataError, match=f"a.jsonl line 2.*{re.escape(message)}"):
        opened(write(folder, [pair(1), pair(3) | changes]))
