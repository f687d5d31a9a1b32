"""What a grammar lets an answer say next: a hook of the request, and its answer as bits for the devices.

A hook is called with the tokens of the answer so far (a list of ids) and returns
  ids that may come next: a list, tuple, set or range;
  or a mask of all ids: bool (V,), or bits in uint32 or int32 words (ceil(V / 32),), bit i of word w being id 32 w + i;
  or None: anything may;  or a whole number: anything may, and it need not be asked for so many tokens.
The same tokens must get the same answer: a request that was preempted, or is asked for again, says the same then.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Hook = Callable[[list[int]], Any]


class DeadEnd(Exception):
    """A hook allows nothing that may be chosen."""


def num_words(vocab_size: int) -> int:
    return -(-vocab_size // 32)


def packed(mask_V: np.ndarray) -> np.ndarray:
    """uint32 (ceil(V / 32),) of bool (V,)."""
    bits = np.zeros(num_words(len(mask_V)) * 32, np.uint8)
    bits[: len(mask_V)] = mask_V
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def ask(hook: Hook, tokens: Sequence[int], allowed_V: np.ndarray) -> tuple[np.ndarray | None, int | None]:
    """(uint32 words, None where anything may come; how many tokens need no other answer, None: any number).

    Args:
      allowed_V: bool, ids that may ever be chosen.

    Raises:
      DeadEnd: nothing may come. ValueError: the hook returned something else than it may.
    """
    said = hook(list(tokens))
    if said is None:
        return None, 1
    if isinstance(said, int | np.integer) and not isinstance(said, bool):
        if said < 1:
            raise ValueError(f"mask: returned {said}; allowed: a whole number at least 1")
        return None, int(said)
    words = _words(said, len(allowed_V))
    if not (words & packed(allowed_V)).any():
        raise DeadEnd
    return words, 1


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
