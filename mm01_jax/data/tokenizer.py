"""Text to token ids and back: bytes, which need nothing, or a user's `tokenizer.json`."""

import array
import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Protocol
from unicodedata import normalize

import numpy as np

from mm01_jax.data import tokenizer_guard, tokenizer_pieces, tokenizer_process
from mm01_jax.data.text import BadFile
from mm01_jax.files import Door, parse_json, quoted, shown, utf8, write
from mm01_jax.messages import counted
from mm01_jax.values import nearest_path, similar

FILES = Door(ValueError)
TOKENIZER_FILE = "tokenizer.json"  # beside the weights of a checkpoint, whoever made it
MOST_BYTES = 64 * 2**20  # of it: a vocabulary of 256,000 tokens takes 33 MB
_ASCII = bytes(range(0x20, 0x7F)).decode()
_BYTES_JSON = 2**16  # more than any file of a byte-level model has
# What published tokenizers call the token that ends a text, in the order in which they are looked for.
END_NAMES = ("<|endoftext|>", "<end_of_document>", "<end_of_sentence>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


class Tokenizer(Protocol):
    """Ids in [0, vocab_size); `end_of_document` is never the id of text."""

    name: str
    vocab_size: int
    end_of_document: int
    fingerprint: str
    loses_blanks: str  # what is to be said of that, where it does, before its tokens are used
    specials: Mapping[str, int]  # tokens that no text has, by their names

    def encode(self, text: bytes | str) -> np.ndarray:
        """int32 ids of a text (UTF-8 when bytes), without any special token."""

    def encode_many(self, texts: list[bytes]) -> list[tuple[np.ndarray, int]]:
        """Of each text its ids, and how many of its characters, blanks aside, none of them stands for."""

    def problem(self, text: bytes) -> str | None:
        """Why a text cannot be encoded; None where it can."""

    def special(self, name: str) -> int:
        """The id of a token that no text has, such as `<image>`; ValueError where there is none of that name."""

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of ids; what is no text (the end of a document, half a character) is shown, not raised."""


class BytesTokenizer:
    """Ids 0..255 are the bytes of UTF-8, 256 ends a document.

    Three bytes that UTF-8 never has stand for the special tokens of a conversation.
    """

    name = "bytes"
    vocab_size = 257
    end_of_document = 256
    fingerprint = "bytes-257"
    loses_blanks = ""
    specials = {"<beginning_of_sentence>": 0xFD, "<end_of_sentence>": 0xFE, "<image>": 0xFF}

    def encode(self, text: bytes | str) -> np.ndarray:
        if isinstance(text, str):
            check_utf8("a text", text)
            text = text.encode()
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def encode_many(self, texts: list[bytes]) -> list[tuple[np.ndarray, int]]:
        return [(self.encode(text), 0) for text in texts]

    def problem(self, text: bytes) -> None:
        return None

    def special(self, name: str) -> int:
        return _known(name, self.specials.get(name), self.name)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """Ids of 256 and above (a vocabulary is often rounded up) have no text and are left out."""
        return bytes(int(i) for i in ids if 0 <= int(i) < 256).decode("utf-8", errors="replace")


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library, in a process of its own where it may take more than its time.

    harmless: the fingerprint of a file of which that is known. is_harmless: whether it is.
    can_drop: whether a character may become no token (`encode_many` counts them).
    """

    def __init__(self, path: str, harmless: str | None = None):
        _library(path)
        content = FILES.text(path, most=MOST_BYTES).encode()
        self.name, self.fingerprint = path, hashlib.sha256(content).hexdigest()
        try:
            self._open(content, harmless)
        except ValueError as error:
            raise BadFile(str(error)) from None

    def _open(self, content: bytes, harmless: str | None) -> None:
        # Looking takes as long as loading: of several processes one does.
        added = [] if self.fingerprint == harmless else tokenizer_guard.harmless(content)
        self.is_harmless = added is not None
        if not self.is_harmless:
            self._guarded = tokenizer_guard.Guarded(self.name, content, END_NAMES)
            facts = self._guarded.facts
        else:
            self._guarded = None
            with self._errors("is not a tokenizer.json"):
                self._tokenizer = _library(self.name).Tokenizer.from_str(utf8(content))
                facts = tokenizer_process.facts(self._tokenizer, END_NAMES, added)
                said = parse_json(self._tokenizer.pre_tokenizer.__getstate__())
                self._place = tokenizer_pieces.places(tokenizer_guard.parts(said))
        self.vocab_size, self.specials = facts["vocab_size"], facts["specials"]
        self.end_of_document = self._find_end(facts["ends"])
        removes = not tokenizer_pieces.KNOWN.issuperset(facts["removes"])  # they keep all: they match every character
        has_all = (facts["falls_back"] and self._keeps(_ASCII)) or self._keeps(_ASCII + _every_byte())
        self.can_drop = removes or not has_all
        self.loses_blanks = self._find_lost_blanks(facts["takes_blanks"])

    def _find_end(self, ids: Mapping[str, int]) -> int:
        for name in END_NAMES:
            if name in ids:
                return ids[name]
        raise ValueError(
            f"data.tokenizer={self.name!r} has no token that ends a text; known are {', '.join(END_NAMES)}."
        )

    def _find_lost_blanks(self, takers: list[str]) -> str:
        """`dropped` leaves blanks aside: a tokenizer of words has no tokens of them, and its decoder puts them back."""
        if sum(map(str.isspace, back := self._back("a b\nc"))) < 2:
            return f"{self.name!r} loses blanks: 'a b\\nc' comes back as {quoted(back)}"
        beside = f"beside {counted(len(takers), 'added token')}, the first: "
        return f"{self.name!r} loses blanks {beside}{quoted(takers[0])}" if takers else ""

    def _keeps(self, probe: str) -> bool:
        """Whether a text comes back: with `_every_byte` from one that is byte-level alone, which loses none."""
        return self._back(probe).strip() == probe.strip()

    def _back(self, probe: str) -> str:
        """What becomes of a text; itself where it is refused: that drops nothing."""
        try:
            return self.decode(self.encode(probe))
        except tokenizer_guard.Stopped:
            raise
        except ValueError:
            return probe

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """A context in which what the library raises, panics among it, is a BadFile in one line."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            raise BadFile(f"data.tokenizer={self.name!r} {doing}: {shown(tokenizer_process.cause(error))}") from None

    def encode(self, text: bytes | str) -> np.ndarray:
        if isinstance(text, bytes):
            text = text.decode()
        else:
            check_utf8("a text", text)
        if self._guarded is not None:
            return self._guarded.encode(text)
        return self._encoded([text], False)[0][0]

    def encode_many(self, texts: list[bytes]) -> list[tuple[np.ndarray, int]]:
        """As one after the other; the library's threads share them, where TOKENIZERS_PARALLELISM is not false."""
        if self._guarded is not None:
            return [self._guarded.counted(text.decode()) if self.can_drop else (self.encode(text), 0) for text in texts]
        return self._encoded([text.decode() for text in texts], self.can_drop)

    def _encoded(self, texts: list[str], counts: bool) -> list[tuple[np.ndarray, int]]:
        """`encode_many`, by pieces of long texts; counts: of what has no token, which takes the places of tokens."""
        together = self._tokenizer.encode_batch if counts else self._tokenizer.encode_batch_fast
        ids, lost = [array.array("i") for _ in texts], [0] * len(texts)  # joined, ids were there twice
        for group in tokenizer_pieces.groups(texts, self._place):
            with self._errors("cannot encode a text"):
                found = together([piece for _, piece in group], add_special_tokens=False)
            for (number, piece), one in zip(group, found, strict=True):
                ids[number].extend(one.ids)
                lost[number] += tokenizer_process.dropped(piece, one.offsets) if counts else 0
        return [(np.frombuffer(found, np.int32), count) for found, count in zip(ids, lost, strict=True)]

    def problem(self, text: bytes) -> str | None:
        if self._guarded is None and len(text) > tokenizer_pieces.MOST:
            try:
                for _ in tokenizer_pieces.cut(text.decode(), self._place):
                    pass
            except ValueError as error:
                return str(error)
        return None

    def special(self, name: str) -> int:
        return _known(name, self.specials.get(name), self.name)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        if self._guarded is not None:
            return self._guarded.decode(ids)
        with self._errors("cannot decode ids"):
            return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def _library(path: str):
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f"data.tokenizer={path!r} needs the `tokenizers` extra: pip install 'mm01_jax[tokenizers]'. "
            "data.tokenizer='bytes' needs nothing."
        ) from error
    return tokenizers


@functools.cache
def _every_byte() -> str:
    """Characters that have every byte of UTF-8 beyond ASCII, and stay what they are in NFC."""
    later = [chr(code) for code in range(0x80, 0xC0)]
    firsts = [code << 6 for code in range(3, 32)] + [0x800, *(code << 12 for code in range(1, 16))]
    firsts += [0x10000, *(code << 18 for code in range(1, 5))]
    kept = (next(c for c in map(chr, range(at, at + 64)) if normalize("NFC", f"1{c}") == f"1{c}") for at in firsts)
    return "1".join([*later, *kept, ""])  # nothing composes with a digit


def check_utf8(name: str, text: str) -> None:
    """ValueError where a text has no form in UTF-8: half a pair of surrogates, as which Python reads wrong bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: character {error.start} is half a pair of surrogates; allowed: UTF-8") from None


def _known(special: str, token: int | None, tokenizer: str) -> int:
    if token is None:
        raise ValueError(f"data.tokenizer={tokenizer!r} has no token {special}, which is needed here")
    return token


def bytes_json() -> dict:
    """BytesTokenizer as a tokenizer.json, for other programs: a vocabulary of single bytes without merges.

    The library writes a byte as a printable character: itself where it is one in Latin-1, else the next from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    vocabulary = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    end = {"id": BytesTokenizer.end_of_document, "content": END_NAMES[0], "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    pieces = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": pieces,
        "decoder": pieces,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _is_bytes(path: str) -> bool:
    """Whether a file is the tokenizer.json that an export of a byte-level model has: it needs no library to be read."""
    try:
        return FILES.json(path, most=_BYTES_JSON) == bytes_json()
    except ValueError:
        return False


def fingerprint(path: str | pathlib.Path) -> str:
    """That of the tokenizer in a file, which is not opened."""
    is_bytes = _is_bytes(path)
    return BytesTokenizer.fingerprint if is_bytes else hashlib.sha256(FILES.read(path, most=MOST_BYTES)).hexdigest()


def save_beside(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Puts the tokenizer.json that a run uses into its folder, so that its checkpoints can be taken elsewhere."""
    kept = folder / TOKENIZER_FILE
    if tokenizer.name != "bytes" and not (kept.exists() and kept.samefile(tokenizer.name)):
        write(kept, FILES.read(tokenizer.name, most=MOST_BYTES))


def open_tokenizer(name: str, harmless: str | None = None) -> Tokenizer:
    """`bytes`, or a path to a tokenizer.json; ValueError for anything else. harmless: of `FileTokenizer`."""
    if name == "bytes":
        return BytesTokenizer()
    if os.path.isdir(name):
        inside = os.path.join(name, TOKENIZER_FILE)
        hint = f" Did you mean {inside!r}?" if os.path.isfile(inside) else ""
        raise ValueError(f"data.tokenizer={name!r} is a directory; allowed: 'bytes' or a tokenizer.json file.{hint}")
    if not os.path.exists(name):  # what else is there and no file is refused as such
        near = next(iter(similar(name, ["bytes"], cutoff=0.5)), None) or nearest_path(name)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"data.tokenizer={name!r} is neither 'bytes' nor a tokenizer.json file.{hint}")
    return BytesTokenizer() if _is_bytes(name) else FileTokenizer(name, harmless)
