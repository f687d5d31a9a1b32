"""A tokenizer.json in a process of its own, with bounded time and memory (`tokenizer_process.py` says what is spoken).

The `tokenizers` library runs what a file asks for: regular expressions that backtrack for hours, replacements that
grow a text without end; and it ends a process that it panics in. The patterns of published tokenizers are known not
to, nor are the parts listed here; a file with anything else runs in that process, and so does one whose texts cannot
be cut (`tokenizer_pieces.py`), which takes memory without end.
"""

import contextlib
import pathlib
import re
import threading
from typing import Any

import numpy as np

from mm01_jax.data import tokenizer_pieces, tokenizer_process
from mm01_jax.data.apart import Ended, Process
from mm01_jax.data.text import BadFile
from mm01_jax.files import parse_json, shown

SECONDS = 2.0  # of the processor, for all texts together, and a second more for every
CHARACTERS_A_SECOND = 100_000
LOAD_BYTES_A_SECOND = 10_000_000
MEMORY = 192 << 20  # of it, beside
LOAD_MEMORY = 50  # times the file's bytes: a Unigram model of 250,000 pieces takes 340 MB
MOST_MEMORY = 512 << 20
_WALL_SECONDS = 120.0  # of a machine that is busy with other things
# Of a file that is loaded in this process: 256,000 tokens with their merges have 2,000,000 values.
_MOST_VALUES, _MOST_NAMES = 2_400_000, 300_000
MOST_NAMES = 400_000  # of a file that is loaded at all: tokens of a vocabulary; published ones have up to 262,144
_PARSED = 350 << 20  # bytes that those take, by the bound that `parse_json` counts with
_MOST_PARTS = 8  # of one kind
_MOST_CHARACTERS = 100  # of a text in a part
_MOST_ADDED = 10_000  # tokens beside the vocabulary, which are looked for in every text
_MOST_IN_ADDED = 200_000  # characters of them
MOST_VALUES = 4_000_000  # of such a file: 40 bytes each while it is loaded. Published ones have up to 1,800,000
_MOST_LOADED = 50_000  # added tokens of a file that is loaded at all; published ones have 7,000
# Ids of a text: what may stand before it (`_LONG_PREFIX`), and of each byte; three bytes become 33 in NFKD.
_TOKENS, _TOKENS_A_BYTE = 200, 16
_NAME = re.compile(rb'"\s*:')
_OBJECT = re.compile(rb'\{\s*"')  # how an added token begins
_LONG_PREFIX = re.compile(rb'"prepend"\s*:\s*"[^"]{101}')  # before every text, however short
# Parts whose time and text grow in proportion to the text's. Not here: NFKC and NFKD make eighteen characters of one,
# WordPiece takes the square of a word's time; Replace and Prepend make any text of one, Strip looks at its ends,
# Precompiled panics when it is damaged, Unigram and CTC take a damaged file's own time.
_TYPES = {
    "normalizer": {"NFC", "NFD", "Lowercase"},
    "pre_tokenizer": {"Split", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "BertPreTokenizer"},
    "post_processor": {"TemplateProcessing", "BertProcessing", "RobertaProcessing"},  # none is run
    "decoder": {"ByteFallback", "Fuse", "WordPiece"},  # `Strip` panics where it takes more than is there
    "model": {"BPE", "WordLevel"},
}
_GROWING = {"ByteLevel", "Metaspace"}  # by two or three times, so one of them
_SEQUENCES = {"normalizers", "pretokenizers", "processors", "decoders"}  # where a Sequence has its parts


def harmless(content: bytes) -> list[dict[str, Any]] | None:
    """The added tokens of a tokenizer.json in which nothing may take more than its text's own time and memory.

    None of any other, which is for `Guarded`.
    """
    if _values(content) > _MOST_VALUES or _names(content) > _MOST_NAMES:
        return None
    try:
        plain = parse_json(content, most=_PARSED)
        added = tokenizer_process.added_tokens(plain)
        plain_parts = all(_is_plain(kind, parts(plain.get(kind))) for kind in _TYPES)
        place = tokenizer_pieces.places(parts(plain.get("pre_tokenizer")))
        local = place is not None and all(tokenizer_pieces.is_local(token, place) for token in added)
        # Of an added token that the normalizer changes nothing may be left, at which the library panics.
        changed = plain.get("normalizer") is not None and any(token.get("normalized", True) for token in added)
        sound = plain_parts and local and not changed and _is_sound(plain["model"]) and _are_few(added)
        return added if sound else None
    except (ValueError, TypeError, AttributeError, KeyError):  # another shape than that of a tokenizer.json
        return None


def _values(content: bytes) -> int:
    """About how many values the lists and objects of a JSON text have."""
    return content.count(b",") + content.count(b"[")


def _names(content: bytes) -> int:
    """About how many names the objects of a JSON text have."""
    return sum(1 for _ in _NAME.finditer(content))


def _is_sound(model: dict[str, Any]) -> bool:
    """Whether the merges of BPE are of tokens that are there: the library panics at others, and says so at length.

    Each is said once. The vocabulary is an object: in a list each of them would be searched for from its beginning.
    """
    words, merges = model["vocab"], model.get("merges", [])
    if model["type"] != "BPE" or not (isinstance(words, dict) and isinstance(merges, list)):
        return isinstance(words, dict) and model["type"] != "BPE"
    pairs = {tuple(pair if isinstance(pair, list) else pair.split(" ", 2)) for pair in merges}
    fixed = any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    once = len(pairs) == len(merges)
    return once and not fixed and all(a in words and b in words and a + b in words for a, b in pairs)


def _are_few(added: list[dict[str, Any]]) -> bool:
    return len(added) <= _MOST_ADDED and sum(len(token["content"]) for token in added) <= _MOST_IN_ADDED


def parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A part, or those of a Sequence; one inside another is a part like others, which no list has."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    (inner,) = (value for key, value in part.items() if key != "type")
    return inner


def _is_plain(kind: str, parts: list[dict[str, Any]]) -> bool:
    """Whether all parts of a kind are known to take no more than their text's time."""
    types = [part["type"] for part in parts]
    allowed = _TYPES[kind] | (_GROWING if kind != "model" else set())
    growing = sum(name in _GROWING for name in types)
    return (
        len(parts) <= _MOST_PARTS
        and all(name in allowed for name in types)
        and growing <= (0 if kind == "normalizer" else 1)
        and all(_is_plain_part(part) for part in parts)
    )


def _is_plain_part(part: dict[str, Any]) -> bool:
    texts = [value for value in part.values() if isinstance(value, str)]
    return not _SEQUENCES & part.keys() and all(len(text) <= _MOST_CHARACTERS for text in texts)


class Stopped(BadFile):
    """The process was ended, because it took too long, or ended by itself."""


class Guarded:
    """The tokenizer in `content`, a tokenizer.json; `facts` as `tokenizer_process.facts`, and `ends`, name -> id.

    Raises:
      BadFile: it is none, or takes too long; so do its methods. The message begins with `name`.
    """

    def __init__(self, name: str, content: bytes, ends: tuple[str, ...]):
        self._name, self._content, self._ends = name, content, ends
        self._memory = min(MOST_MEMORY, MEMORY + LOAD_MEMORY * len(content))
        self._process: Process | None = None
        self._lock = threading.Lock()  # a request and its answer are one: several threads read a run's data
        if (count := sum(1 for _ in _OBJECT.finditer(content))) > _MOST_LOADED:
            what = f"has about {count:,} objects, as added tokens are; allowed: at most {_MOST_LOADED:,}"
            raise BadFile(f"data.tokenizer={name!r}: {what}")
        if (count := _names(content)) > MOST_NAMES:
            what = f"has about {count:,} names, one a token and seven an added token; allowed: at most {MOST_NAMES:,}"
            raise BadFile(f"data.tokenizer={name!r}: {what}")
        if (count := _values(content)) > MOST_VALUES:
            raise BadFile(f"data.tokenizer={name!r}: has about {count:,} values; allowed: at most {MOST_VALUES:,}")
        if _LONG_PREFIX.search(content):
            raise BadFile(f"data.tokenizer={name!r}: puts more than 100 bytes before every text")
        self.facts: dict[str, Any] = self._start()

    def encode(self, text: str) -> np.ndarray:
        """int32 ids."""
        return self._checked(np.frombuffer(self._ask("encode", text.encode()), np.int32), text)

    def decode(self, ids: np.ndarray) -> str:
        return self._ask("decode", np.asarray(ids, np.int32).tobytes()).decode(errors="replace")

    def counted(self, text: str) -> tuple[np.ndarray, int]:
        """int32 ids, and characters as `tokenizer_process.dropped` counts them."""
        found = np.frombuffer(self._ask("count", text.encode()), np.int32)
        return self._checked(found[1:], text), int(found[0])

    def _checked(self, ids: np.ndarray, text: str) -> np.ndarray:
        """The ids of a text; BadFile where they are many more than it has bytes: a prompt would never end."""
        if len(ids) > (most := _TOKENS + _TOKENS_A_BYTE * len(text.encode())):
            what = f"makes {len(ids):,} tokens of a text of {len(text.encode()):,} bytes; allowed: at most {most:,}"
            raise BadFile(f"data.tokenizer={self._name!r}: {what}")
        return ids

    def _start(self) -> dict[str, Any]:
        script = str(pathlib.Path(__file__).with_name("tokenizer_process.py"))
        self._process = Process([script], {"TOKENIZERS_PARALLELISM": "false"})
        self._process.memory = self._memory >> 20
        seconds = SECONDS + len(self._content) / LOAD_BYTES_A_SECOND
        first = {"seconds": seconds, "left": SECONDS, "ends": self._ends, "bytes": self._memory}
        return parse_json(self._exchange(first, self._content, "is loaded"))

    def _ask(self, what: str, content: bytes) -> bytes:
        request = {"do": what, "seconds": 0.001 + len(content) / CHARACTERS_A_SECOND}
        with self._lock:
            if self._process is None:
                self._start()
            return self._exchange(request, content, f"{what}s {len(content):,} bytes")

    def _exchange(self, request: dict[str, Any], content: bytes, doing: str) -> bytes:
        try:
            self._process.say(request, content)
            head, answer = self._process.hear(_WALL_SECONDS + request["seconds"])
        except BaseException as error:
            self._process = None
            if isinstance(error, Ended):
                raise Stopped(f"data.tokenizer={self._name!r}: {error} while it {doing}") from None
            raise
        if "error" in head:
            raise BadFile(f"data.tokenizer={self._name!r}: while it {doing}: {shown(head['error'])}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None

    def __del__(self):
        with contextlib.suppress(Exception):
            self.close()
