"""Text to token ids and back: bytes, which need nothing, or a user's `tokenizer.json`."""

import difflib
import hashlib
import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from mm01_jax.files import Door

FILES = Door(ValueError)
TOKENIZER_FILE = "tokenizer.json"  # beside the weights of a checkpoint, whoever made it
MOST_BYTES = 64 * 2**20  # of it: a vocabulary of 256,000 tokens takes 33 MB
_BYTES_JSON = 2**16  # more than any file of a byte-level model has
# What published tokenizers call the token that ends a text, in the order in which they are looked for.
END_NAMES = ("<|endoftext|>", "<end_of_document>", "<end_of_sentence>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


class Tokenizer(Protocol):
    """Ids in [0, vocab_size); `end_of_document` is never the id of text."""

    name: str
    vocab_size: int
    end_of_document: int
    fingerprint: str
    specials: Mapping[str, int]  # tokens that no text has, by their names

    def encode(self, text: bytes | str) -> np.ndarray:
        """int32 ids of a text (UTF-8 when bytes), without any special token."""

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
    specials = {"<beginning_of_sentence>": 0xFD, "<end_of_sentence>": 0xFE, "<image>": 0xFF}

    def encode(self, text: bytes | str) -> np.ndarray:
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def special(self, name: str) -> int:
        return _known(name, self.specials.get(name), self.name)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """Ids of 256 and above (a vocabulary is often rounded up) have no text and are left out."""
        return bytes(int(i) for i in ids if 0 <= int(i) < 256).decode("utf-8", errors="replace")


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library."""

    def __init__(self, path: str):
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                f"data.tokenizer={path!r} needs the `tokenizers` extra: pip install 'mm01_jax[tokenizers]'. "
                "data.tokenizer='bytes' needs nothing."
            ) from error
        content = FILES.read(path, most=MOST_BYTES)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"data.tokenizer={path!r} is not a tokenizer.json: {error}") from error
        # A file may ask for truncation: documents would silently become shorter.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<|endoftext|>" in a document is text, never the end of that document.
        self._tokenizer.encode_special_tokens = True
        self.name = path
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.end_of_document = self._find_end()
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {token.content: number for number, token in added.items() if token.special}

    def _find_end(self) -> int:
        for name in END_NAMES:
            if (token := self._tokenizer.token_to_id(name)) is not None:
                return token
        raise ValueError(
            f"data.tokenizer={self.name!r} has no token that ends a text; known are {', '.join(END_NAMES)}."
        )

    def encode(self, text: bytes | str) -> np.ndarray:
        text = text.decode() if isinstance(text, bytes) else text
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def special(self, name: str) -> int:
        return _known(name, self.specials.get(name), self.name)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def _known(special: str, token: int | None, tokenizer: str) -> int:
    if token is None:
        raise ValueError(f"data.tokenizer={tokenizer!r} has no token {special}, which conversations need.")
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


def open_tokenizer(name: str) -> Tokenizer:
    """`bytes`, or a path to a tokenizer.json; ValueError for anything else."""
    if name == "bytes":
        return BytesTokenizer()
    if not os.path.isfile(name):
        near = difflib.get_close_matches(name, ["bytes"], n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data.tokenizer={name!r} is neither 'bytes' nor a tokenizer.json file.{hint}")
    return BytesTokenizer() if _is_bytes(name) else FileTokenizer(name)
