"""What a grammar lets an answer say, as a hook of the engine (`masks.py`): llguidance over the model's tokenizer.

A grammar is Lark's, as llguidance reads it: JSON schemas inside behind `%json`, special tokens by their names.
"""

import functools
import importlib.util
import re
from collections.abc import Collection, Sequence

import numpy as np

from mm01_jax.data.tokenizer import MOST_BYTES, BytesTokenizer, Tokenizer
from mm01_jax.files import Door, utf8
from mm01_jax.inference.masks import num_words

MOST_CHARACTERS = 100_000  # of a grammar, its schemas among them
_LIMITS = {  # so that a grammar is made, and asked, in a fraction of a second
    "max_grammar_size": 100_000,
    "initial_lexer_fuel": 100_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
}
_MOST_ANSWERS = 128  # whose place in one grammar is kept
_FILES = Door(ValueError)
_BEHIND = re.compile("<state>|<backtrace>")
_OF_SCHEMA = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: .*?)( 1 \| .*)?$")


class Grammars:
    """Grammars over one tokenizer.

    vocab_size: of the model, at least the tokenizer's. stop_ids: what ends an answer where its grammar does.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]):
        self._of, self._words, self._stop_ids = tokenizer, num_words(vocab_size), sorted(stop_ids)

    def check(self, grammar: str) -> None:
        """ValueError says why a grammar is none, or has no way on behind a first token, as one that is too large."""
        matcher = self._matcher(grammar)
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little"))
        for token in [int(id) for id in allowed if id not in self._stop_ids][:1]:
            matcher.consume_token(token)
            matcher.compute_bitmask()
            if matcher.is_error():
                raise ValueError(_why(matcher))

    def hook(self, grammar: str) -> "Grammar":
        """The hook of a request; ValueError as of `check`."""
        return Grammar(self._matcher(grammar), self._words)

    def _matcher(self, grammar: str):
        if importlib.util.find_spec("llguidance") is None:
            raise ValueError("a form of answers needs llguidance: pip install 'mm01_jax[serve]'")
        import llguidance

        if len(grammar) > MOST_CHARACTERS:
            raise ValueError(f"got {len(grammar):,} characters; allowed: {MOST_CHARACTERS:,}")
        limits = llguidance.LLParserLimits(**_LIMITS)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what can say nothing at all is known now
        if matcher.is_error():
            raise ValueError(_why(matcher))
        return matcher

    @functools.cached_property
    def _tokenizer(self):
        import llguidance

        tokenizer = self._of
        if isinstance(tokenizer, BytesTokenizer):
            return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes(tokenizer)), eos_token=self._stop_ids)
        if not tokenizer.is_harmless:
            raise ValueError(f"a form of answers needs a published tokenizer; {tokenizer.name} may take more than time")
        content = utf8(_FILES.read(tokenizer.name, most=MOST_BYTES))
        return llguidance.LLTokenizer(content, n_vocab=tokenizer.vocab_size, eos_token=self._stop_ids)


class Grammar:
    """A hook: of the tokens of an answer so far, those that may come next; ends in the stop ids alone.

    Answers of one request ask in turn: the place of each is kept.
    """

    def __init__(self, matcher, words: int):
        self._root, self._words = matcher, words
        self._places: list[tuple[list[int], object]] = []  # (tokens, a matcher behind them), the last asked last

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """uint32 (words,); ValueError where nothing may come."""
        matcher = self._behind(list(tokens))
        said = np.frombuffer(matcher.compute_bitmask(), np.uint32)
        if matcher.is_error():  # a mask of stop ids, as if the answer were whole
            raise ValueError(f"the grammar has come to a dead end: {_why(matcher)}")
        words = np.zeros(self._words, np.uint32)
        words[: len(said)] = said[: self._words]
        return words

    def _behind(self, tokens: list[int]):
        for number in reversed(range(len(self._places))):
            before, matcher = self._places[number]
            if tokens[: len(before)] == before:
                del self._places[number]
                break
        else:
            before, matcher = [], self._root.deep_copy()
        matcher.consume_tokens(tokens[len(before) :])
        self._places = [*self._places[-_MOST_ANSWERS + 1 :], (tokens, matcher)]
        return matcher


class _Bytes:
    """Tokens of `BytesTokenizer` as llguidance wants them."""

    def __init__(self, tokenizer: BytesTokenizer):
        names = {id: name.encode() for name, id in tokenizer.specials.items()}
        self.tokens = [names.get(id, bytes([id])) for id in range(256)] + [b"<end_of_document>"]
        self.special_token_ids = [*names, tokenizer.end_of_document]
        self.eos_token_id, self.bos_token_id = tokenizer.end_of_document, None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _why(matcher) -> str:
    """An error in one line, without the state of a parser behind it, or the grammar that a schema stands in."""
    said = " ".join(_BEHIND.split(matcher.get_error())[0].split())
    if said.startswith("panic: "):
        return "llguidance cannot take this grammar"
    if "NoExtensionBias" in said:
        return "nothing can match it"
    return (_OF_SCHEMA.sub(r"\1", said))[:300] or "nothing may come"
