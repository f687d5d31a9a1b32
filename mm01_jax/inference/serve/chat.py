"""/v1/chat/completions: what may be asked, and how its answers look."""

import functools
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mm01_jax.data.conversations import MOST_MESSAGES
from mm01_jax.inference.serve import asked, fields, formats, tool_choice, tools, unused
from mm01_jax.inference.serve.asked import Asked
from mm01_jax.inference.serve.calls import ARGUMENTS, CALL, THINKING, Part
from mm01_jax.inference.serve.errors import Refused, wrong
from mm01_jax.inference.serve.fields import Field, Rule
from mm01_jax.inference.serve.link import Answer, Piece
from mm01_jax.inference.serve.parser import Reader, Reading, message
from mm01_jax.inference.serve.service import Service

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST_PARTS = 100_000  # of a message


def parse(body: Any, service: Service) -> Asked:
    """
    Raises:
      Refused: names the field.
    """
    values = fields.read(body, asked.common(service, service.context) | _own(service))
    asked.check(values, service)
    values["max_tokens"] = _most(values["max_tokens"], values["max_completion_tokens"])
    if values["top_logprobs"] and not values["logprobs"]:
        raise Refused("top_logprobs: allowed with logprobs=true alone", "top_logprobs")
    offer = tools.offer(values, service)
    prompt = service.conversation(values["messages"], values["tools"] if offer.tools else ())
    prompts = [prompt.ids]
    longest = asked.check_length("messages", prompts, values["max_tokens"], service)
    stop_ids = () if values["ignore_eos"] else service.stop_ids
    request = asked.engine_request(values, longest, stop_ids, service)
    reading = tools.reading(offer, prompts[0], service)
    if grammar := tools.grammar(offer, values["response_format"], reading, service):
        asked.check_end(values)
        request["grammar"] = grammar
    request["logprobs"] = (values["top_logprobs"] or 0) if values["logprobs"] else None
    return Asked(prompts, values["n"], request, values["stream"], Chat(values, service, reading), prompt.pictures)


def _most(old: int | None, new: int | None) -> int | None:
    """The one number of the two names that it has."""
    if None not in (old, new) and old != new:
        name = "max_completion_tokens"
        raise wrong(name, new, f"one of it and max_tokens, which is {old}")
    return old if new is None else new


def _own(service: Service) -> dict[str, Field]:
    """The fields that completions have not. What does nothing is allowed as far as leaving it out does the same."""
    return unused.OF_A_REQUEST | {
        "messages": Field(messages(service), required=True),
        "max_completion_tokens": Field(fields.whole(1, service.context)),
        "logprobs": Field(fields.switch, False),
        "top_logprobs": Field(fields.whole(0, service.logprobs)),
        "response_format": Field(formats.response_format),
        "tools": Field(tools.definitions, []),
        "tool_choice": Field(tool_choice.choice, tool_choice.AUTO),
        "parallel_tool_calls": Field(fields.switch, True),
        "modalities": Field(fields.list_of(fields.one_of("text"), 1, 1)),
        "store": Field(fields.one_of(False)),
        "verbosity": Field(fields.one_of("medium")),
        "reasoning_effort": Field(fields.one_of()),
        "prediction": Field(_prediction),
    }


def messages(service: Service) -> Rule:
    """A conversation: at least one message, of known roles, with texts, a user's with images where the model sees."""

    def rule(name: str, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value:
            raise wrong(name, value, "a list of at least one message")
        return fields.list_of(functools.partial(_message, service), 1, MOST_MESSAGES)(name, value)

    return rule


def _message(service: Service, name: str, value: Any) -> dict[str, Any]:
    role = value.get("role") if isinstance(value, dict) else None
    parts = {"text": _text_part} | ({"image_url": service.images.part} if service.images and role == "user" else {})
    has_calls = role == "assistant" and bool(value.get("tool_calls"))
    known = (unused.OF_AN_ANSWER if role == "assistant" else {}) | {
        "role": Field(fields.one_of(*_ROLES), required=True),
        "content": Field(functools.partial(_content, parts), required=not has_calls),
        "name": Field(fields.text),
        "refusal": Field(fields.text),
        "annotations": Field(fields.list_of(fields.one_of(), 0, 0)),
        "reasoning_content": Field(fields.text),
        "tool_calls": Field(tools.calls if has_calls else fields.list_of(fields.one_of(), 0, 0)),
        "tool_call_id": Field(fields.text, required=role == "tool"),
    }
    found = fields.read(value, known, name)
    return {key: found[key] for key in ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")}


def _content(parts: Mapping[str, Rule], name: str, value: Any) -> str | list[dict[str, Any]]:
    """A text, or parts, the rule of each kind in `parts`."""
    if isinstance(value, str):
        return fields.text(name, value)
    if not isinstance(value, list) or not value:
        raise wrong(name, value, "a text, or a list of parts")
    return fields.list_of(fields.by_type(parts), 1, _MOST_PARTS)(name, value)


def _text_part(name: str, value: Any) -> dict[str, str]:
    known = {"type": Field(fields.one_of("text"), required=True), "text": Field(fields.text, required=True)}
    return {"type": "text", "text": fields.read(value, unused.OF_A_PART | known, name)["text"]}


def _prediction(name: str, value: Any) -> dict[str, Any]:
    """What the answer may be, to be faster where it is; it is drawn all the same."""
    content = functools.partial(_content, {"text": _text_part})
    known = {"type": Field(fields.one_of("content"), required=True), "content": Field(content, required=True)}
    return fields.read(value, known, name)


class Chat:
    """The shape of /v1/chat/completions (`asked.Shape`)."""

    def __init__(self, values: dict[str, Any], service: Service, reading: Reading):
        self._service, self._count = service, values["n"]
        self._logprobs = values["logprobs"]
        self._usage = asked.wants_usage(values)
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._thinks = reading.thinks
        self._read = defaultdict(lambda: Reader(reading))
        self._ids = defaultdict(lambda: defaultdict(lambda: f"call_{secrets.token_hex(12)}"))  # by answer and call

    def whole(self, answers: Sequence[Answer], pieces: Sequence[Piece]) -> dict:
        choices = [self._choice(place, piece) for place, piece in enumerate(pieces)]
        usage = {"usage": self._counted(answers), "service_tier": "default"}
        return self._head("chat.completion") | {"choices": choices} | usage

    def _choice(self, place: int, piece: Piece) -> dict:
        said = message(self._read[place].take(piece))
        text = said.text if said.text or not said.calls else None
        found = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        if self._thinks:
            found["reasoning_content"] = said.thinking or None
        if said.calls:
            ids = self._ids[place]
            found["tool_calls"] = [
                {"id": ids[number], "type": "function", "function": call._asdict()}
                for number, call in enumerate(said.calls)
            ]
        return {
            "index": place,
            "message": found,
            "logprobs": self._listed(piece),
            "finish_reason": self._finish(place, piece),
        }

    def _finish(self, place: int, piece: Piece) -> str | None:
        """How an answer ended, as OpenAI's API says it: calls that are not whole are none to make."""
        reader = self._read[place]
        return "tool_calls" if piece.finish == "stop" and reader.calls and not reader.is_inside_call else piece.finish

    def opening(self, answers: Sequence[Answer]) -> list[dict]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(place, delta, None, None) for place in range(len(answers))]

    def events(self, place: int, answer: Answer, piece: Piece) -> list[dict]:
        deltas = [self._delta(place, part) for part in self._read[place].take(piece)]
        if not deltas and piece.finish is None and not self._logprobs:
            return []  # all of it may yet become something else
        chunks = [self._chunk(place, delta, None, None) for delta in deltas or [{}]]
        chunks[0]["choices"][0]["logprobs"] = self._listed(piece)
        chunks[-1]["choices"][0]["finish_reason"] = self._finish(place, piece)
        return chunks

    def _delta(self, place: int, part: Part) -> dict:
        if part.kind == CALL:
            called = {"name": part.text, "arguments": ""}
            id = self._ids[place][part.call]
            return {"tool_calls": [{"index": part.call, "id": id, "type": "function", "function": called}]}
        if part.kind == ARGUMENTS:
            return {"tool_calls": [{"index": part.call, "function": {"arguments": part.text}}]}
        return {"reasoning_content" if part.kind == THINKING else "content": part.text}

    def failed(self, why: Refused) -> dict:
        return why.body

    def closing(self, answers: Sequence[Answer]) -> list[dict]:
        usage = {"choices": [], "usage": self._counted(answers)}
        return [self._head("chat.completion.chunk") | usage] if self._usage else []

    def _counted(self, answers: Sequence[Answer]) -> dict[str, Any]:
        thoughts = "".join(reader.thinking for reader in self._read.values())
        return asked.usage(answers, self._count, len(self._service.encode("messages", thoughts)) if thoughts else 0)

    def _chunk(self, place: int, delta: dict, logprobs: dict | None, finish: str | None) -> dict:
        choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._usage else {}
        return self._head("chat.completion.chunk") | {"choices": [choice]} | usage

    def _head(self, kind: str) -> dict:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._service.name}

    def _listed(self, piece: Piece) -> dict | None:
        if not self._logprobs:
            return None
        content = [
            self._token(token, logprob) | {"top_logprobs": [self._token(*one) for one in top]}
            for token, logprob, top in zip(piece.tokens, piece.logprobs, piece.top, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict:
        """A token and its bytes: null where it is no text of its own."""
        name = self._service.name_of(token)
        is_text = not name.startswith("token_id:")
        return {"token": name, "logprob": asked.finite(logprob), "bytes": list(name.encode()) if is_text else None}
