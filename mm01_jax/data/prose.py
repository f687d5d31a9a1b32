"""Real text that every machine with Python has, as haystacks need it: sentences, words, and documents with facts.

The text is what the standard library says of itself: the topics of `help()` and the descriptions in its modules. It
follows from the version of Python alone, which results name.
"""

import functools
import re
from typing import NamedTuple

from mm01_jax.data.stdlib import stdlib_shards

_QUOTED = re.compile(r'"""(.*?)"""', re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_DEFINED = re.compile(
    r'^(?P<kind>def|class) (?P<name>\w+)(?:\((?P<inside>[^()]*)\))?(?: -> [^:\n]+)?:\n\s+r?"""(?P<said>.*?)"""',
    re.DOTALL | re.MULTILINE,
)
_WORD = re.compile(r"(?<![\w.-])[a-z]{4,10}(?![\w.(-])")
_SHORTEST, _LONGEST = 20, 400  # characters of a sentence


class Described(NamedTuple):
    """A function or class of the standard library. base: of a class, what it is made from."""

    module: str
    kind: str
    name: str
    base: str
    said: str


@functools.cache
def _texts() -> tuple[tuple[str, str], ...]:
    """(name, text) of every document."""
    shards = sorted(stdlib_shards(), key=lambda shard: shard.name)
    return tuple((shard.name, record) for shard in shards for record in _read(shard))


def _read(shard) -> list[str]:
    records = list(shard.scan(lambda size: None))
    return [
        shard.read(record.key, 0, record.size, record.digest).decode() for record in records if record.problem is None
    ]


@functools.cache
def sentences() -> tuple[str, ...]:
    """Every sentence of the descriptions once, in order, blanks made one; 20 to 400 characters each."""
    found: dict[str, None] = {}
    for name, text in _texts():
        said = [text] if name.startswith("pydoc_data/") else _QUOTED.findall(text)
        for paragraph in (part for one in said for part in one.split("\n\n")):
            for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                if _is_sentence(sentence):
                    found[sentence] = None
    return tuple(found)


def _is_sentence(text: str) -> bool:
    fits = _SHORTEST <= len(text) <= _LONGEST
    return fits and text.isprintable() and text[0].isupper() and text.endswith(".")


@functools.cache
def words() -> tuple[str, ...]:
    """Words of four to ten small letters that sentences have, in the order of the alphabet."""
    return tuple(sorted({word for sentence in sentences() for word in _WORD.findall(sentence)}))


@functools.cache
def described() -> tuple[Described, ...]:
    """Functions and classes whose name is that of one thing alone, with what is said of them in one paragraph."""
    found: dict[str, list[Described]] = {}
    for place, text in _texts():
        if not place.endswith(".py"):
            continue
        module = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for match in _DEFINED.finditer(text):
            said = " ".join(match["said"].split("\n\n")[0].split())
            base = match["inside"] or "" if match["kind"] == "class" else ""
            if not match["name"].startswith("_") and len(match["name"]) > 3 and len(said) >= _SHORTEST:
                found.setdefault(match["name"], []).append(
                    Described(module, match["kind"], match["name"], base.strip(), said[:_LONGEST])
                )
    return tuple(one[0] for one in found.values() if len(one) == 1)
