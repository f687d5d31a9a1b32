"""An answer's text as the parts of a message, for streamed and whole answers alike: thoughts, text, calls of tools."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from mm01_jax.data.tool_calls import Call, Form
from mm01_jax.inference.serve.calls import ARGUMENTS, CALL, TEXT, THINKING, Calls, Part
from mm01_jax.inference.serve.link import Piece
from mm01_jax.inference.thoughts import Said, Thoughts


class Reading(NamedTuple):
    """What an answer may hold beside its text.

    thinks: thoughts; begun: they begin with the prompt's end. form, names: calls of these tools, `most` at most; None,
    none.
    """

    thinks: bool = False
    begun: bool = False
    form: Form | None = None
    names: Collection[str] = ()
    most: int | None = None


class Parser:
    """Takes an answer apart as it comes: what is said is never taken back, wherever the pieces were cut."""

    def __init__(self, reading: Reading):
        self._thoughts = Thoughts(begun=reading.begun) if reading.thinks else None
        self._calls = Calls(reading.form, reading.names, reading.most) if reading.form else None

    def take(self, piece: str) -> list[Part]:
        """What is certain after one more piece."""
        return self._parts(self._thoughts.take(piece) if self._thoughts else Said("", piece))

    @property
    def is_inside_call(self) -> bool:
        return self._calls is not None and self._calls.is_inside

    def end(self) -> list[Part]:
        """What was held back, when nothing comes any more."""
        parts = self._parts(self._thoughts.end()) if self._thoughts else []
        return parts + (self._calls.end() if self._calls else [])

    def _parts(self, said: Said) -> list[Part]:
        thinking = [Part(THINKING, said.thinking)] if said.thinking else []
        if not said.text:
            return thinking
        return thinking + (self._calls.take(said.text) if self._calls else [Part(TEXT, said.text)])


class Reader:
    """The parts of one answer of the engine. thinking: what it thought so far. calls: how many it made."""

    @property
    def is_inside_call(self) -> bool:
        """Whether the last call is not whole: where the answer has ended, it was cut there."""
        return self._parser.is_inside_call

    def __init__(self, reading: Reading):
        self._parser, self.thinking, self.calls = Parser(reading), "", 0

    def take(self, piece: Piece) -> list[Part]:
        """What is certain after one more piece, neighbours of one kind in one part; all of it with the last."""
        parts = self._parser.take(piece.text)
        if piece.finish is not None:
            parts += self._parser.end()
        self.thinking += "".join(part.text for part in parts if part.kind == THINKING)
        self.calls += sum(part.kind == CALL for part in parts)
        return _joined(parts)


def _joined(parts: Iterable[Part]) -> list[Part]:
    found: list[Part] = []
    for part in parts:
        goes_on = found and part.kind != CALL and (found[-1].kind, found[-1].call) == (part.kind, part.call)
        before = found.pop().text if goes_on else ""
        found.append(part._replace(text=before + part.text))
    return found


class Message(NamedTuple):
    """A whole answer: thinking and text, "" where there is none."""

    thinking: str
    text: str
    calls: list[Call]


def message(parts: Iterable[Part]) -> Message:
    """The message that parts make."""
    sides, calls = {THINKING: "", TEXT: ""}, []
    for part in parts:
        if part.kind == CALL:
            calls.append(Call(part.text, ""))
        elif part.kind == ARGUMENTS:
            calls[part.call] = Call(calls[part.call].name, calls[part.call].arguments + part.text)
        else:
            sides[part.kind] += part.text
    return Message(sides[THINKING], sides[TEXT], calls)
