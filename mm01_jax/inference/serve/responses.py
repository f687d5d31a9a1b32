"""/v1/responses, its text subset: what may be asked, and how its answers look. Nothing is kept between requests."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mm01_jax.inference.serve import asked, fields, formats, tool_choice, tools, unused
from mm01_jax.inference.serve.asked import Asked
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.serve.link import Answer, Piece
from mm01_jax.inference.serve.parser import Reader, Reading
from mm01_jax.inference.serve.response_input import messages_of
from mm01_jax.inference.serve.response_items import Items
from mm01_jax.inference.serve.service import Service

# What there is none of here: thoughts in cipher, results of tools that OpenAI runs.
_INCLUDES = (
    *("reasoning.encrypted_content", "file_search_call.results", "web_search_call.results"),
    *("web_search_call.action.sources", "computer_call_output.output.image_url", "code_interpreter_call.outputs"),
)
_HELD = ("text.format", "tools[{}].parameters")  # what holds an answer to a grammar
_SHARED = ("model", "temperature", "top_p", "seed", "stream", "user")  # with the other ways to ask


def parse(body: Any, service: Service) -> Asked:
    """
    Raises:
      Refused: names the field.
    """
    common = asked.common(service, service.context)
    values = fields.read(body, {name: common[name] for name in _SHARED} | _own(service))
    values = {name: field.default for name, field in common.items()} | values
    service.check_model(values["model"])
    offer = tools.offer(values, service)
    start = [{"role": "system", "content": values["instructions"]}] if values["instructions"] else []
    given = values["tools"] if offer.tools else ()
    prompt = service.conversation([*start, *messages_of(values["input"], service)], given, "input")
    prompts = [prompt.ids]
    values["max_tokens"] = values["max_output_tokens"]
    longest = asked.check_length("input", prompts, values["max_tokens"], service, "max_output_tokens")
    request = asked.engine_request(values, longest, service.stop_ids, service)
    reading = tools.reading(offer, prompts[0], service)
    if grammar := tools.grammar(offer, values["text"]["form"], reading, service, _HELD):
        request["grammar"] = grammar
    shape = Responses(values, body, service, reading)
    return Asked(prompts, 1, request, values["stream"], shape, prompt.pictures)


def _own(service: Service) -> dict[str, Field]:
    """The fields of this path. What does nothing here is allowed as far as leaving it out does the same."""
    return unused.OF_A_REQUEST | {
        "input": Field(fields.anything, required=True),  # `messages_of` reads it
        "instructions": Field(fields.text),
        "max_output_tokens": Field(fields.whole(1, service.context)),
        "text": Field(_text, {"form": None}),
        "tools": Field(tools.flat_definitions, []),
        "tool_choice": Field(tool_choice.flat_choice, tool_choice.AUTO),
        "parallel_tool_calls": Field(fields.switch, True),
        "stream_options": Field(_stream_options),
        "max_tool_calls": Field(fields.whole(1, 2**31 - 1)),  # of tools that OpenAI runs
        "include": Field(fields.list_of(fields.one_of(*_INCLUDES), 0, len(_INCLUDES))),
        "reasoning": Field(_reasoning),
        "truncation": Field(fields.one_of("disabled")),
        "background": Field(fields.one_of(False)),
        "store": Field(fields.switch),
        "top_logprobs": Field(fields.whole(0, 0)),
    }


def _text(name: str, value: Any) -> dict[str, Any]:
    known = {"format": Field(_format), "verbosity": Field(fields.one_of("medium"))}
    return {"form": fields.read(value, known, name)["format"]}


def _format(name: str, value: Any) -> dict[str, str] | None:
    return formats.response_format(name, value, is_flat=True)


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    return fields.read(value, {"include_obfuscation": Field(fields.one_of(False))}, name)


def _reasoning(name: str, value: Any) -> dict[str, Any]:
    """A model thinks as much as it does: nothing else can be asked for."""
    known = {key: Field(fields.one_of()) for key in ("effort", "summary", "generate_summary")}
    known |= {"mode": Field(fields.one_of("standard")), "context": Field(fields.one_of("auto"))}
    return fields.read(value, known, name)


class Responses:
    """The shape of /v1/responses (`asked.Shape`)."""

    def __init__(self, values: Mapping[str, Any], body: Mapping[str, Any], service: Service, reading: Reading):
        self._values, self._service = values, service
        self._choice, self._format = body.get("tool_choice") or "auto", body.get("text") or {}
        self._id, self._created, self._numbers = f"resp_{secrets.token_hex(24)}", int(time.time()), 0
        self._reader, self._items = Reader(reading), Items()

    def whole(self, answers: Sequence[Answer], pieces: Sequence[Piece]) -> dict:
        self._take(pieces[0])
        return self._response(answers[0])

    def opening(self, answers: Sequence[Answer]) -> list[dict]:
        begun = self._response(answers[0], is_open=True)
        return self._numbered([{"type": f"response.{word}", "response": begun} for word in ("created", "in_progress")])

    def events(self, place: int, answer: Answer, piece: Piece) -> list[dict]:
        return self._numbered(self._take(piece))

    def closing(self, answers: Sequence[Answer]) -> list[dict]:
        found = self._response(answers[0])
        return self._numbered([{"type": f"response.{found['status']}", "response": found}])

    def failed(self, why: Refused) -> dict:
        error = why.body["error"]
        (event,) = self._numbered([{"type": "error"} | {key: error[key] for key in ("code", "message", "param")}])
        return event

    def _take(self, piece: Piece) -> list[dict]:
        events = [event for part in self._reader.take(piece) for event in self._items.add(part)]
        is_whole = piece.finish == "stop" and not self._reader.is_inside_call
        return events if piece.finish is None else events + self._items.end(is_whole)

    def _numbered(self, events: list[dict]) -> list[dict]:
        start, self._numbers = self._numbers, self._numbers + len(events)
        return [event | {"sequence_number": start + number} for number, event in enumerate(events)]

    def _response(self, answer: Answer, is_open: bool = False) -> dict:
        is_cut = answer.finish == "length"
        status = "in_progress" if is_open else "incomplete" if is_cut else "completed"
        echoed = {name: self._values[name] for name in _ECHOED}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut and not is_open else None,
            "model": self._service.name,
            "output": [] if is_open else self._items.found,
            "tools": [tools.flat(tool) for tool in self._values["tools"]],
            "tool_choice": self._choice,
            "text": {"format": {"type": "text"}} | self._format,
            "usage": None if is_open else self._usage(answer),
            **echoed,
            **_FIXED,
        }

    def _usage(self, answer: Answer) -> dict[str, Any]:
        thoughts = self._reader.thinking
        count = asked.usage([answer], 1, len(self._service.encode("input", thoughts)) if thoughts else 0)
        return {
            "input_tokens": count["prompt_tokens"],
            "input_tokens_details": count["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": count["completion_tokens"],
            "output_tokens_details": count["completion_tokens_details"],
            "total_tokens": count["total_tokens"],
        }


_ECHOED = (
    *("instructions", "max_output_tokens", "max_tool_calls", "temperature", "top_p", "parallel_tool_calls"),
    *("metadata", "user", "prompt_cache_key", "safety_identifier"),
)
# What an answer says of fields that do nothing here.
_FIXED = {
    "background": False,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": False,
    "top_logprobs": 0,
    "truncation": "disabled",
}
