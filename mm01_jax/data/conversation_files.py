"""Files of conversations, some with images, as documents: .jsonl beside its images, or .arrayrecord with them inside.

    {"messages": [{"role": "user", "content": "<image>What is it?"}, ...], "images": ["a.png"]}

A pair, for learning a preference, is a conversation with a second answer, `"rejected": "It is a dog."`; preferred is
its last message.

A line of .jsonl names its images by paths from the folder it lies in, which they may not leave. A record of
.arrayrecord holds the same, `images` being the byte counts of files that follow: 8 bytes with the length of the JSON
(little endian), the JSON, the files (`pack_record`).
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mm01_jax.data.conversations import IMAGE, check_messages, count_images, text_of
from mm01_jax.data.json_lines import JsonLines, json_object, whole_line
from mm01_jax.data.text import DataError, Record, Seen, Shard
from mm01_jax.files import quoted, shown
from mm01_jax.messages import counted

_MOST_IMAGES = 10_000  # of a conversation
_KEPT = 1 << 16  # images of which is known that they are whole


class Picture(NamedTuple):
    """One image of a conversation, not opened. source: a path, or a file's bytes. root: where the path must lie."""

    name: str
    source: pathlib.Path | bytes
    root: pathlib.Path | None


class Conversation(NamedTuple):
    """messages: as `conversations.check_messages` allows, one `<image>` in them for each of `pictures`. rejected: of a
    pair, the answer that the last message was preferred to.
    """

    messages: list[dict[str, Any]]
    pictures: tuple[Picture, ...]
    rejected: str | None = None


class ConversationShard:
    """A shard whose documents are conversations: text, checked to be one, and its images, checked to be whole. With
    `pairs` each has a rejected answer; without, what a record has of one is left aside.
    """

    reads_ranges = False

    def __init__(self, shard: Shard, folder: pathlib.Path, pairs: bool = False):
        self.name, self._shard, self._folder, self._pairs = shard.name, shard, folder.resolve(), pairs
        # Many questions may be asked of one image, by one name or several.
        self._digest, self._whole = functools.lru_cache(maxsize=_KEPT)(self._digest_of_whole), set()

    def scan(self, seen: Seen) -> Iterator[Record]:
        for record in self._shard.scan(seen):
            yield record if record.problem else self._examined(record)

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        del digest  # of the images, too
        return self._shard.read(key, start, stop, None)

    def conversation(self, key: int, size: int, label: str, digest: bytes) -> Conversation:
        """The conversation at `key`; ValueError says what is none, or is another than that of `digest`."""
        content = self._shard.read(key, 0, size, None)
        found = self._parse(content, label)
        if self._digest_with_images(hashlib.sha256(content).digest()[:16], found) != digest:
            raise ValueError("it is another than the one that was indexed")
        return found

    def _examined(self, record: Record) -> Record:
        """The record with the content of its images in its digest."""
        try:
            found = self._parse(self._shard.read(record.key, 0, record.size, record.digest), record.label)
            return record._replace(digest=self._digest_with_images(record.digest, found))
        except (ValueError, DataError) as error:
            return record._replace(problem=str(error))

    def _digest_with_images(self, digest: bytes, found: Conversation) -> bytes:
        sha = hashlib.sha256(digest)
        for picture in found.pictures:
            sha.update(self._digest(picture))
        return sha.digest()[:16]

    def _digest_of_whole(self, picture: Picture) -> bytes:
        from mm01_jax.data.images.decoding import check_whole  # needs pillow, which text alone does not
        from mm01_jax.data.images.opening import content_of

        content = content_of(picture.source, picture.name, picture.root)
        if (digest := hashlib.sha256(content).digest()) not in self._whole:
            check_whole(content, picture.name)
            if len(self._whole) == _KEPT:
                self._whole.clear()
            self._whole.add(digest)
        return digest

    def _parse(self, content: bytes, label: str) -> Conversation:
        fields, files = _split(content) if isinstance(self._shard, Packed) else (json_object(content), None)
        messages, images = fields.get("messages"), fields.get("images", [])
        check_messages(messages)
        if not isinstance(images, list):
            raise ValueError(f"images is {quoted(images)}, not a list")
        if len(images) > _MOST_IMAGES:
            raise ValueError(f"it has {len(images):,} images; allowed: at most {_MOST_IMAGES:,}")
        if (marks := count_images(messages)) != len(images):
            has = counted(marks, f"{IMAGE} mark"), counted(len(images), "image")
            raise ValueError(f"its text has {has[0]} and it has {has[1]}")
        if files is None:
            pictures = [self._beside(image) for image in images]
        else:
            pictures = [Picture(f"{label} image {i}", image, None) for i, image in enumerate(_cut(files, images))]
        return Conversation(messages, tuple(pictures), _rejected(fields) if self._pairs else None)

    def _beside(self, image: Any) -> Picture:
        if not isinstance(image, str) or not image:
            raise ValueError(f"an image is {quoted(image)}, not the path of a file")
        return Picture(shown(image), self._folder / image, self._folder)


class ConversationLines(JsonLines):
    """`.jsonl` whose documents are the lines themselves."""

    def __init__(self, name: str, path: pathlib.Path):
        super().__init__(name, path, "messages")

    def _text(self, line: bytes) -> bytes:
        json_object(whole_line(line))
        return line.strip()


class Packed:
    """An `.arrayrecord` file of packed records; they are bytes, so nothing is asked of them as text."""

    reads_ranges = False

    def __init__(self, name: str, path: pathlib.Path):
        from mm01_jax.data.array_record import ArrayRecordFile  # loads a native library that only this kind needs

        self.name, self._file = name, ArrayRecordFile(name, path)

    def scan(self, seen: Seen) -> Iterator[Record]:
        for key, content in self._file.contents():
            seen(len(content))
            label = f"{self.name} record {key}"
            yield Record(key, label, len(content), hashlib.sha256(content).digest()[:16], None)

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        return self._file.read(key, start, stop, digest)


def pack_record(messages: Sequence[dict[str, Any]], images: Sequence[bytes], rejected: str | None = None) -> bytes:
    """One record of an .arrayrecord file; `images` are whole files; `rejected` makes it a pair."""
    fields = {"messages": list(messages), "images": [len(image) for image in images]}
    head = json.dumps(fields if rejected is None else fields | {"rejected": rejected}).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(images)


def _rejected(fields: dict[str, Any]) -> str:
    last, rejected = fields["messages"][-1], fields.get("rejected")
    if last["role"] != "assistant":
        raise ValueError(f"its last message is of the {last['role']}; of a pair it is the preferred answer")
    if not isinstance(rejected, str) or not rejected:
        raise ValueError(f"rejected is {quoted(rejected)}; of a pair it is the text of the answer not preferred")
    if IMAGE in rejected:
        raise ValueError(f"rejected has {IMAGE} marks; the images of a pair stand before its two answers")
    if rejected == text_of(last):
        raise ValueError("its two answers are the same")
    return rejected


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 + size:
        raise ValueError(f"its JSON should have {size} bytes, the record has {len(content)}")
    return json_object(content[8 : 8 + size]), content[8 + size :]


def _cut(files: bytes, sizes: Sequence[Any]) -> Iterator[bytes]:
    if any(type(size) is not int or size < 0 for size in sizes) or sum(sizes) != len(files):
        raise ValueError(f"images is {quoted(sizes)}, not the byte counts of the {len(files)} bytes that follow")
    at = 0
    for size in sizes:
        yield files[at : at + size]
        at += size
