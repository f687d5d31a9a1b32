"""Rows of conversations: none is cut, answers alone are learnt, each token that an image takes has its feature."""

import itertools
import json

import numpy as np
import pytest

from mm01_jax.data.image_grid import bucket
from mm01_jax.data.images import decoding, opening
from mm01_jax.data.pipeline import batches
from mm01_jax.data.text import DataError
from tests.data import conversation_data as data


def rows(dataset, count: int) -> list[dict]:
    return [dataset.train.row(i) for i in range(count)]


def samples(row) -> list[bytes]:
    """The bytes of each sample of a row."""
    segments = row["segments"]
    return [bytes(row["tokens"][segments == s].tolist()) for s in range(segments.max() + 1)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return data.opened(data.write_lines(tmp_path_factory.mktemp("lines")))


def test_an_epoch_has_every_sample_once_and_whole(dataset):
    seen, index = [], 0
    while len(seen) < 24:
        seen += samples(dataset.train.row(index))
        index += 1
    numbers = [int(sample.split(b"it is ")[1].split(b".")[0]) for sample in seen]
    assert sorted(numbers) == list(range(24))
    assert all(sample.startswith(b"\xfduser name=user\n") and sample.endswith(b".\xfe\n") for sample in seen)


def test_answers_alone_are_learnt(dataset):
    for row in rows(dataset, 6):
        learnt = bytes(row["targets"][row["weights"] > 0].tolist())
        answers = [b"it is " + sample.split(b"it is ")[1][:-1] for sample in samples(row)]
        assert learnt == b"".join(answers)
        follows = row["weights"] > 0
        assert np.array_equal(row["targets"][:-1][follows[:-1]], row["tokens"][1:][follows[:-1]])


def test_positions_and_segments_restart_with_each_sample(dataset):
    for row in rows(dataset, 6):
        for segment in range(row["segments"].max() + 1):
            (places,) = np.nonzero(row["segments"] == segment)
            assert np.array_equal(row["positions"][places], np.arange(len(places)))
            assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))


def test_every_image_token_has_a_feature_of_its_own_tiles_and_text_has_none(dataset):
    patches = data.VISION.num_patches
    for index, row in enumerate(rows(dataset, 6)):
        is_image = row["tokens"] == 255
        assert np.array_equal(row["image_index"] >= 0, is_image)
        used = (row["image_index"][row["image_index"] > 0] - 1) // patches
        assert np.array_equal(np.unique(used), np.arange(len(row["tiles"])))  # all tiles, none of another row
        assert (np.diff(used[np.unique(used, return_index=True)[1]]) > 0).all()
        assert len(row["tiles"]) == dataset.train.num_tiles(index)


def test_a_file_of_lines_and_one_of_records_give_the_same_rows(tmp_path, dataset):
    packed = data.opened(data.write_array_record(tmp_path))
    for ours, theirs in zip(samples_with_tiles(dataset), samples_with_tiles(packed), strict=True):
        assert ours == theirs


def samples_with_tiles(dataset) -> list[tuple[bytes, bytes]]:
    documents = dataset.train.documents
    made = [documents.sample(i) for i in range(len(documents.num_tokens_D))]
    return [(sample.ids.tobytes(), sample.tiles.tobytes()) for sample in made]


def test_batches_go_on_from_any_row_bit_for_bit(dataset):
    def flat(batch):
        return [None if x is None else x.tobytes() for x in batch]

    def served(start: int, size: int, count: int):
        return list(itertools.islice(batches(dataset.train, start, lambda _: size, vocab_size=320), count))

    whole = served(0, 2, 6)
    assert [row for row, _ in whole] == [2, 4, 6, 8, 10, 12]
    again = served(6, 2, 3)
    assert [flat(batch) for _, batch in whole[3:]] == [flat(batch) for _, batch in again]


def test_tiles_are_padded_to_the_bucket_of_the_row_with_most(dataset):
    for row, batch in itertools.islice(batches(dataset.train, 0, lambda _: 3, vocab_size=320), 4):
        counts = [dataset.train.num_tiles(row - 3 + i) for i in range(3)]
        assert batch.tiles.shape == (3, bucket(max(counts)), 3, 16, 16)
        for i, count in enumerate(counts):
            assert not batch.tiles[i, count:].any()
            assert batch.image_index[i].max() <= count * data.VISION.num_patches


def test_processes_share_a_batch_and_its_number_of_tiles(dataset):
    whole = next(batches(dataset.train, 0, lambda _: 4, vocab_size=320))[1]
    parts = [next(batches(dataset.train, 0, lambda _: 4, i, 2, vocab_size=320))[1] for i in range(2)]
    for name in whole._fields:
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))


def test_rows_of_text_alone_are_mixed_in_by_the_ratio(tmp_path):
    source = data.write_lines(tmp_path)
    (tmp_path / "text").mkdir()
    other = tmp_path / "text" / "b.jsonl"
    other.write_text(
        "".join(json.dumps({"messages": data.conversation(1000 + i, 0)}) + "\n" for i in range(40)), encoding="utf-8"
    )
    mixed, plain = data.opened(source, mixed_in=str(other), rows_between=3), data.opened(source)
    for index in range(12):
        text = b"is 10" in bytes(mixed.train.row(index)["tokens"].tolist())
        assert text == (index % 4 == 3)
        if not text:
            expected = plain.train.row(index // 4 * 3 + index % 4)
            assert np.array_equal(mixed.train.row(index)["tokens"], expected["tokens"])
    only_text = data.opened(other)
    batch = next(batches(only_text.train, 0, lambda _: 2, vocab_size=320))[1]
    assert batch.tiles is None and batch.image_index is None


def test_a_sample_that_no_row_holds_is_refused_by_name(tmp_path):
    source = data.write_lines(tmp_path)
    with pytest.raises(DataError, match=r"a.jsonl document \d+ takes \d+ tokens and samples are never cut; allowed"):
        data.opened(source, length=64)


def test_a_model_without_vision_refuses_images_by_name(tmp_path):
    with pytest.raises(DataError, match="document 0 has images, and the config has no vision|document . has images"):
        data.opened(data.write_lines(tmp_path), vision=None)


BAD = {
    "a mark too few": (
        {"messages": data.conversation(0, 0), "images": ["a.png"]},
        "0 <image> marks and it has 1",
    ),
    "a mark too many": ({"messages": data.conversation(0, 2), "images": ["a.png"]}, "2 <image> marks and it has 1"),
    "no such image": ({"messages": data.conversation(0, 1), "images": ["b.png"]}, "b.png: No such file"),
    "out of the folder": ({"messages": data.conversation(0, 1), "images": ["../x.png"]}, "side the data's folder"),
    "a link out of it": ({"messages": data.conversation(0, 1), "images": ["link.png"]}, "side the data's folder"),
    "truncated": ({"messages": data.conversation(0, 1), "images": ["cut.png"]}, "cut.png: .* truncated or damaged"),
    "too wide": ({"messages": data.conversation(0, 1), "images": ["wide.png"]}, "wide.png: has 60000 x 1 pixels"),
    "no messages": ({"text": "hello"}, "messages: got None; allowed: a list"),
    "an unknown role": ({"messages": [{"role": "bot", "content": "x"}]}, "role 'bot'"),
    "images no list": ({"messages": data.conversation(0, 0), "images": "a.png"}, "images is 'a.png', not a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_refused_by_line(tmp_path, name):
    record, says = BAD[name]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(data.png(20, 20, 0))
    (tmp_path / "x.png").write_bytes(data.png(20, 20, 0))
    (folder / "link.png").symlink_to(tmp_path / "x.png")
    (folder / "cut.png").write_bytes(data.png(40, 40, 0)[:-60])
    (folder / "wide.png").write_bytes(data.png(60_000, 1, 0))
    (folder / "a.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=f"a.jsonl (line 1|document 0): .*{says}"):
        data.opened(folder / "a.jsonl")


def test_another_image_under_the_same_name_is_other_data(tmp_path):
    source = data.write_lines(tmp_path)
    before = data.opened(source).manifest["fingerprint"]
    image = next((tmp_path / "images").iterdir())
    image.write_bytes(data.png(20, 20, seed=999))
    assert data.opened(source).manifest["fingerprint"] != before


def test_an_image_of_several_names_is_decoded_once(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(decoding, "check_whole", lambda content, name: decoded.append(name))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(data.png(20, 20, 0))
    record = {"messages": data.conversation(0, 3), "images": ["a.png", "./a.png", "b.png"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    data.opened(tmp_path / "a.jsonl")
    assert decoded == ["a.png"]


def test_of_a_picture_that_very_many_conversations_are_about_the_size_is_read_once(tmp_path, monkeypatch):
    opened, open_image = [], opening.open_image
    monkeypatch.setattr(opening, "open_image", lambda *given: opened.append(given) or open_image(*given))
    (tmp_path / "a.png").write_bytes(data.png(20, 20, 0))
    lines = [{"messages": data.conversation(number, 1), "images": ["a.png"]} for number in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    data.opened(tmp_path / "a.jsonl")
    assert len([source for source, *_ in opened if not isinstance(source, bytes)]) == 1  # beside the look at its bytes
