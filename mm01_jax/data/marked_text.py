"""The text that a chat template makes, as ids: a special token's name is one only where the template says it.

What a person wrote is marked before the template sees it, and the marks are taken out behind it.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mm01_jax.data.conversations import Rendered
from mm01_jax.data.tokenizer import Tokenizer

_PRIVATE = range(0xE000, 0xF900)  # code points that Unicode leaves to programs


def specials(tokenizer: Tokenizer) -> re.Pattern:
    """The tokenizer's special tokens in a text, a group; of none, what never matches."""
    return _any_of(tuple(tokenizer.specials))


@functools.lru_cache(maxsize=4)  # it is asked for at every text
def _any_of(names: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def unused(text: str) -> str:
    """A private character that a text has not; ValueError where it has them all."""
    if not (free := set(map(chr, _PRIVATE)) - set(text)):
        raise ValueError(f"a conversation has all {len(_PRIVATE):,} characters of private use; allowed: all but one")
    return min(free)


def marked(value: Any, tokenizer: Tokenizer, mark: str) -> Any:
    """A message or tools with a mark inside the name of every special token, so that it is none to `encode`."""
    split: Callable[[re.Match], str] = lambda match: match[0][:1] + mark + match[0][1:]  # noqa: E731
    if isinstance(value, str):
        return specials(tokenizer).sub(split, value)
    if isinstance(value, list | tuple):
        return [marked(one, tokenizer, mark) for one in value]
    if isinstance(value, dict):
        return {marked(key, tokenizer, mark): marked(one, tokenizer, mark) for key, one in value.items()}
    return value


def encode(text: str, bounds: Sequence[tuple[int, int]], tokenizer: Tokenizer, mark: str) -> Rendered:
    """Ids of a text: special tokens as such, the rest as text, cut where an answer begins or ends."""
    cuts = sorted({0, len(text), *(at for pair in bounds for at in pair)})
    ids, said = [], []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        is_answer = any(first <= start < last for first, last in bounds)
        for piece in specials(tokenizer).split(text[start:stop]):
            if piece in tokenizer.specials:
                ids.append(np.array([tokenizer.special(piece)], np.int32))
            else:
                ids.append(tokenizer.encode(piece.replace(mark, "")))
            said.append(np.full(len(ids[-1]), is_answer))
    return Rendered(np.concatenate([np.zeros(0, np.int32), *ids]), np.concatenate([np.zeros(0, bool), *said]))
