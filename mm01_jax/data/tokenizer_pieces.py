"""Where a text may be cut so that its pieces, one after the other, have the tokens of the whole.

The `tokenizers` library takes hundreds of bytes of memory for a byte of text. A pre-tokenizer splits a text into words
of which each is encoded alone, so at a place that lies between two words whatever stands around it a text may be cut
before: between a letter and a blank, say. What comes before the words is local too: NFC, NFD and Lowercase change
nothing across these places.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

LONG = 1 << 14  # characters from which on a text is cut at the next place
MOST = 1 << 18  # bytes of UTF-8 that are encoded together: of small words or NFD they take 700 bytes each
_LETTERS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_GPT_4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Patterns of published tokenizers, none of which takes longer than in proportion to the text: MiniMax-01 (o200k's),
# Llama 3 and Qwen 2 (cl100k's with other lengths of numbers), GPT-2. They match every character, look at none before a
# match, and behind it only for a blank that follows blanks; a match goes from no letter to a digit, a stop or a line's
# end, and from no character but a blank to a blank.
KNOWN = frozenset(
    {
        rf"{_LETTERS}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_SHORT}{_LETTERS}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_SHORT}"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        _GPT_4 + r"\p{N}{1,3}" + _REST,
        _GPT_4 + r"\p{N}" + _REST,
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    }
)
_KEPT = (("Isolated", False), ("Removed", True))  # (behavior, invert) by which the matches of a Split are the words
# Letters in every version of Unicode, which NFD leaves letters: of й or が it makes a mark, which takes a line's end.
_LETTER = "A-Za-zα-ωа-ик-яא-תا-غก-ฮあ-おな-のま-んア-オナ-ノマ-ン一-龥가-힣"
# Two characters between which a text may be cut. A piece begins with a blank where a word may get one put before it.
_WORDS = re.compile(rf"\S |[{_LETTER}0-9]\n|[{_LETTER}][0-9，。]")
_LINES = re.compile(r"\S[ \n]")
_BLANKS = re.compile(r"\S ")
_AT_BLANKS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_LOCAL = _AT_BLANKS | {"Split", "Digits", "Punctuation"}  # the others look at one character after the other
_LAST = {"ByteLevel", "Metaspace"}  # which make something else of a blank


def places(parts: list[dict[str, Any]]) -> re.Pattern | None:
    """The two characters between which a text may be cut that these pre-tokenizers split, one after the other.

    None where there are none, or it is not known: a Split by any other pattern, a part that is not one of these.
    """
    types = [part["type"] for part in parts]
    if not parts or not _LOCAL.issuperset(types[:-1]) or types[-1] not in _LOCAL | _LAST:
        return None
    if not all(_keeps_words(part) for part in parts if part["type"] == "Split"):
        return None
    last, kind = parts[-1], types[-1]
    if "Split" in types or (kind == "ByteLevel" and last.get("use_regex", True) is True):
        puts_before = kind == "Metaspace" or (kind == "ByteLevel" and last.get("add_prefix_space", True) is not False)
        return _BLANKS if puts_before else _WORDS
    if not _AT_BLANKS.isdisjoint(types):
        return _LINES
    return _BLANKS if kind == "Metaspace" and last.get("split", True) is True else None


def _keeps_words(split: dict[str, Any]) -> bool:
    known = split["pattern"].keys() == {"Regex"} and split["pattern"]["Regex"] in KNOWN
    return known and (split["behavior"], split.get("invert", False)) in _KEPT


def is_local(token: dict[str, Any], place: re.Pattern) -> bool:
    """Whether an added token is found in the pieces of a text where it is found in the whole.

    Also one that is special, which is no token in a text: it hides others that it overlaps.
    """
    looks = not token.get("special") and any(token.get(name) for name in ("single_word", "lstrip", "rstrip"))
    return not looks and not place.search(token["content"])


def cut(text: str, place: re.Pattern) -> Iterator[str]:
    """The pieces of a text; ValueError, before any larger one is given, where it has more than `MOST` bytes."""
    at = 0
    while at < len(text):
        found = place.search(text, at + LONG - 1, at + LONG + MOST) if len(text) - at > LONG else None
        stop = found.end() - 1 if found else len(text)
        if stop - at > LONG and (size := len(text[at : min(stop, at + LONG + MOST)].encode())) > MOST:
            raise ValueError(
                f"behind character {at:,} of {len(text):,} come {size:,} bytes and more without an end of a word; "
                f"allowed: at most {MOST:,}; leave it out or break it into lines"
            )
        yield text[at:stop]
        at = stop


def groups(texts: Iterable[str], place: re.Pattern) -> Iterator[list[tuple[int, str]]]:
    """(number of its text, a piece), in order: together as many as have `MOST` bytes, or one."""
    group, size = [], 0
    for number, text in enumerate(texts):
        for piece in cut(text, place) if len(text) > LONG else (text,):
            length = len(piece.encode())
            if group and size + length > MOST:
                yield group
                group, size = [], 0
            group.append((number, piece))
            size += length
    if group:
        yield group
