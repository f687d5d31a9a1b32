"""A sample of an evaluation: what is said, what the answer is, and what is known of both."""

import dataclasses
from typing import Any, NamedTuple

USER, ASSISTANT = "user", "assistant"


class Turn(NamedTuple):
    """What one side says. pieces: its text in order, cut where tokens may be cut: each is tokenised by itself."""

    role: str
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One question with its context.

    Args:
      task: the family it is of. number: which of that family at that length.
      length: tokens that were asked for, of prompt and answer. size: those that it has.
      turns: the last is the user's question. prefix: how the answer begins; the model is given it.
      answers: the texts that are asked for. scorer: how an answer is judged by them (`scores.SCORERS`).
      chance: the score that is to be expected of whoever has not read the context.
      facts: what else there is to say of it, as JSON has it: depths in [0, 1], counts.
    """

    task: str
    number: int
    length: int
    size: int
    turns: tuple[Turn, ...]
    prefix: str
    answers: tuple[str, ...]
    scorer: str
    max_tokens: int
    chance: float
    facts: dict[str, Any]

    @property
    def question(self) -> str:
        """The text of the last turn, context and question."""
        return self.turns[-1].text

    @property
    def bytes(self) -> int:
        """Bytes of UTF-8 of all that is said, the beginning of the answer among it."""
        return len("".join([*(turn.text for turn in self.turns), self.prefix]).encode())
