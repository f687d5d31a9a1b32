"""What a grammar lets an answer say next: a hook of the request, and its answer as bits for the devices.

A hook is called with the tokens of the answer so far (a list of ids) and returns
  ids that may come next: a list, tuple, set or range;
  or a mask of all ids: bool (V,), or bits in uint32 or int32 words (ceil(V / 32),), bit i of word w being id 32 w + i;
  or None: anything may;  or a whole number: anything may, and it need not be asked for so many tokens.
The same tokens must get the same answer: a request that was preempted, or is asked for again, says the same then.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Hook = Callable[[list[int]], Any]


class Said(NamedTuple):
    """What a hook lets an answer say: words uint32 (ceil(V / 32),), None where anything may come; free: how many tokens
    need no other answer; or error: why it may say nothing."""

    words: np.ndarray | None = None
    free: int = 1
    error: str | None = None


Ask = Callable[[Sequence[tuple[Hook, Sequence[int]]], np.ndarray], list[Said]]  # as `ask_all`


def num_words(vocab_size: int) -> int:
    return -(-vocab_size // 32)


def packed(mask_V: np.ndarray) -> np.ndarray:
    """uint32 (ceil(V / 32),) of bool (V,)."""
    bits = np.zeros(num_words(len(mask_V)) * 32, np.uint8)
    bits[: len(mask_V)] = mask_V
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def ask(hook: Hook, tokens: Sequence[int], allowed_V: np.ndarray) -> Said:
    """What a hook says of the answer so far; whatever is wrong with it is told, not raised: others go on.

    Args:
      allowed_V: bool, ids that may ever be chosen.
    """
    try:
        return _said(hook(list(tokens)), allowed_V)
    except Exception as error:  # a stranger's program
        why = str(error) or type(error).__name__
        return Said(error=why if why.startswith("mask: ") else f"mask: {why}")


def ask_all(asked: Sequence[tuple[Hook, Sequence[int]]], allowed_V: np.ndarray) -> list[Said]:
    """Of each hook with the tokens of its answer."""
    return [ask(hook, tokens, allowed_V) for hook, tokens in asked]


def _said(said, allowed_V: np.ndarray) -> Said:
    if said is None:
        return Said()
    if isinstance(said, int | np.integer) and not isinstance(said, bool):
        if said < 1:
            raise ValueError(f"mask: returned {said}; allowed: a whole number at least 1")
        return Said(free=int(said))
    words = _words(said, len(allowed_V))
    if not (words & packed(allowed_V)).any():
        raise ValueError("mask: no id that may be chosen is allowed")
    return Said(words=words)


def _words(said, vocab_size: int) -> np.ndarray:
    if isinstance(said, np.ndarray) and said.dtype == bool and said.shape == (vocab_size,):
        return packed(said)
    if isinstance(said, np.ndarray) and said.dtype in (np.uint32, np.int32) and said.shape == (num_words(vocab_size),):
        return said.view(np.uint32)
    if not isinstance(said, list | tuple | set | frozenset | range):
        what = f"{said.dtype}{list(said.shape)}" if isinstance(said, np.ndarray) else f"a {type(said).__name__}"
        raise ValueError(
            f"mask: returned {what}; allowed: ids in a list, bool[{vocab_size}], uint32[{num_words(vocab_size)}], None "
            "or a whole number"
        )
    mask_V = np.zeros(vocab_size, bool)
    for token in said:
        if not isinstance(token, int | np.integer) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise ValueError(f"mask: returned the id {token!r}; allowed: 0 to {vocab_size - 1}")
        mask_V[token] = True
    return packed(mask_V)
