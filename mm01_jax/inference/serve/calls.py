"""Calls of tools in a text, taken apart as it comes: what is said is never taken back, wherever the pieces were cut.

What surrounds calls belongs to no side, nor do blanks next to it. What begins like a call and becomes none, or calls
what is no tool of the request, is text as it stands.
"""

import json
from collections.abc import Collection
from typing import NamedTuple

from mm01_jax.data.tool_calls import Form
from mm01_jax.files import parse_json
from mm01_jax.inference.stops import overlap

TEXT, THINKING, CALL, ARGUMENTS = "text", "thinking", "call", "arguments"
_BLANKS = " \t\r\n,;"  # that may stand between calls


class Part(NamedTuple):
    """kind: TEXT, THINKING, CALL (text: the tool's name) or ARGUMENTS. call: which of the answer's calls."""

    kind: str
    text: str
    call: int | None = None


class Calls:
    """names: of the tools there are. most: calls that may be made; more are left out."""

    def __init__(self, form: Form, names: Collection[str], most: int | None = None):
        self._form, self._names, self._most = form, names, most
        self._held = ""  # not decided yet
        self._raw = ""  # what stands before the first call of a block: text, where none follows
        self.count, self._block = 0, 0  # calls so far, and in this block
        self._brackets, self._looked = _Brackets(), 0  # of what is held, so many characters
        self._state = self._text

    def take(self, piece: str) -> list[Part]:
        """What is certain after one more piece."""
        self._held += piece
        parts: list[Part] = []
        while (new := self._state()) is not None:
            parts += new
        return parts

    @property
    def is_inside(self) -> bool:
        """Whether the arguments of a call have not ended yet."""
        return self._state == self._arguments and (self._most is None or self.count <= self._most)

    def end(self) -> list[Part]:
        """What was held back, when nothing comes any more."""
        held, self._held = self._raw + self._held, ""
        if self._state == self._after or (self._state == self._between and self._is_end(held)):
            return []
        return _said(held)

    def _is_end(self, held: str) -> bool:
        """Whether a text is what may stand behind a block's last call, as far as it came."""
        return self._block > 0 and self._form.close.startswith(held.strip(_BLANKS))

    def _text(self) -> list[Part] | None:
        before, mark, after = self._held.partition(self._form.open)
        if mark:
            said = before.rstrip()
            self._raw, self._held = before[len(said) :] + mark, after
            self._state = self._lead if self._form.lead else self._between
            self._block = 0
            return _said(said)
        certain = before[: len(before) - overlap(before, self._form.open)].rstrip()
        self._held = before[len(certain) :]
        return _said(certain) or None

    def _lead(self) -> list[Part] | None:
        rest, lead = self._held.lstrip(), self._form.lead
        if rest.startswith(lead):
            self._keep(rest[len(lead) :])
            self._state = self._between
            return []
        return None if lead.startswith(rest) else self._no_call()

    def _between(self) -> list[Part] | None:
        rest, form = self._held.lstrip(_BLANKS), self._form
        if rest.startswith(form.close):
            self._raw, self._held, self._state = "", rest[len(form.close) :], self._after
            return []
        if match := form.head.match(rest):
            name = _name(match[1]) if form.is_json else match[1]
            return self._begin(name, rest[match.end() :]) if name in self._names else self._no_call()
        if form.close.startswith(rest):
            return None
        if not form.partial.fullmatch(rest):
            return self._no_call()
        self._keep(rest)
        return self._whole() if form.is_json else None

    def _begin(self, name: str, rest: str) -> list[Part]:
        """A call whose arguments come next."""
        self._raw, self._held, self._state = "", rest, self._arguments
        self._brackets, self._looked = _Brackets(depth=1), 0
        self.count, self._block = self.count + 1, self._block + 1
        return self._wanted([Part(CALL, name, self.count - 1)])

    def _whole(self) -> list[Part] | None:
        """A call in another order, or with arguments of another form, which is known when it is whole."""
        end = self._brackets.until(self._held[self._looked :], 0)
        if end is None:
            self._looked = len(self._held)
            return None
        end, self._looked, self._brackets = self._looked + end, 0, _Brackets()
        try:
            found = parse_json(self._held[:end].encode())
            name, arguments = found["name"], _object(found)
        except (ValueError, KeyError, TypeError):
            return self._no_call()
        if name not in self._names:
            return self._no_call()
        self._raw, self._held = "", self._held[end:]
        self.count, self._block = self.count + 1, self._block + 1
        return self._wanted([Part(CALL, name, self.count - 1), Part(ARGUMENTS, arguments, self.count - 1)])

    def _arguments(self) -> list[Part] | None:
        if not self._held:
            return None
        end = self._brackets.until(self._held, 1)
        part, self._held = (self._held, "") if end is None else (self._held[:end], self._held[end:])
        if end is not None:
            self._state = self._tail
        return self._wanted([Part(ARGUMENTS, part, self.count - 1)])

    def _tail(self) -> list[Part] | None:
        """What a call has behind its arguments, which is of no use."""
        end = self._brackets.until(self._held, 0)
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return None
        self._state, self._brackets = self._between, _Brackets()
        return []

    def _after(self) -> list[Part] | None:
        self._held = self._held.lstrip()
        if not self._held:
            return None
        self._state = self._text
        return []

    def _no_call(self) -> list[Part]:
        raw, self._raw, self._state = self._raw, "", self._text
        self._brackets, self._looked = _Brackets(), 0
        return _said(raw)

    def _keep(self, rest: str) -> None:
        self._raw += self._held[: len(self._held) - len(rest)]
        self._held = rest

    def _wanted(self, parts: list[Part]) -> list[Part]:
        return parts if self._most is None or self.count <= self._most else []


class _Brackets:
    """How deep in brackets a text is, those inside quotes aside."""

    def __init__(self, depth: int = 0):
        self._depth, self._quoted, self._escaped = depth, False, False

    def until(self, text: str, depth: int) -> int | None:
        """Where it has come down to a depth: behind the bracket; None where it has not yet."""
        for place, character in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                else:
                    self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "([{":
                self._depth += 1
            elif character in ")]}":
                self._depth -= 1
                if self._depth == depth:
                    return place + 1
        return None


def _object(found: dict) -> str:
    """JSON of an object; ValueError where it is none."""
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote them
        arguments = parse_json(arguments.encode())
    if not isinstance(arguments, dict):
        raise ValueError
    text = json.dumps(arguments, ensure_ascii=False)
    text.encode()  # half a pair of surrogates has no form
    return text


def _name(quoted: str) -> str | None:
    try:
        return parse_json(quoted.encode())
    except ValueError:
        return None


def _said(text: str) -> list[Part]:
    return [Part(TEXT, text)] if text else []
