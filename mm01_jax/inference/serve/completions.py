"""/v1/completions: what may be asked, and how its answers look."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from mm01_jax.data.conversations import IMAGE
from mm01_jax.inference.serve import asked, fields
from mm01_jax.inference.serve.asked import Asked
from mm01_jax.inference.serve.errors import Refused, wrong
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.serve.link import Answer, Piece
from mm01_jax.inference.serve.service import Service

_MOST_PROMPTS, _FEW_TOKENS = 2048, 16
_STOP_IDS = 8  # that an engine takes, the end of a document among them


def parse(body: Any, service: Service) -> Asked:
    """
    Raises:
      Refused: names the field.
    """
    own = {
        "prompt": Field(_prompts(service), required=True),
        "max_tokens": Field(fields.whole(0, service.context)),
        "logprobs": Field(fields.whole(0, service.logprobs)),
        "echo": Field(fields.switch, False),
        "suffix": Field(fields.one_of("")),
        "stop_token_ids": Field(fields.ids(service.vocab_size, 0), []),  # vLLM's name, beside those of OpenAI
    }
    values = fields.read(body, asked.common(service, service.context) | own)
    asked.check(values, service)
    if values["max_tokens"] == 0 and not values["echo"]:
        raise wrong("max_tokens", 0, "a whole number from 1; 0 with echo=true, of who asks for the prompt alone")
    prompts = values["prompt"]
    if body.get("max_tokens") is None:  # as OpenAI's does; at the end of a slot fewer
        longest = asked.check_length("prompt", prompts, None, service)
        values["max_tokens"] = min(_FEW_TOKENS, service.context - longest)
    longest = asked.check_length("prompt", prompts, values["max_tokens"], service)
    own_ends = () if values["ignore_eos"] else (service.tokenizer.end_of_document,)
    ends = {*own_ends, *values["stop_token_ids"]}
    if len(ends) > _STOP_IDS:
        raise wrong("stop_token_ids", values["stop_token_ids"], f"at most {_STOP_IDS - 1} token ids")
    request = asked.engine_request(values, longest, sorted(ends), service)
    request["logprobs"] = values["logprobs"]
    request["prompt_logprobs"] = values["logprobs"] if values["echo"] else None
    return Asked(prompts, values["n"], request, values["stream"], Completions(values, service))


def _prompts(service: Service):
    """A text, token ids, or a list of either, as token ids."""

    def rule(name: str, value: Any) -> list[list[int]]:
        if isinstance(value, str):
            return [_encoded(service, name, fields.text(name, value))]
        if not isinstance(value, list) or not value:
            raise wrong(name, value, "a text, token ids, or a list of texts or of token ids")
        if not isinstance(value[0], str | list):
            return [fields.ids(service.vocab_size)(name, value)]
        if isinstance(value[0], list):
            return fields.list_of(fields.ids(service.vocab_size), 1, _MOST_PROMPTS)(name, value)
        texts = fields.list_of(fields.text, 1, _MOST_PROMPTS)(name, value)
        return [_encoded(service, f"{name}[{place}]", text) for place, text in enumerate(texts)]

    return rule


def _encoded(service: Service, name: str, text: str) -> list[int]:
    """Ids of a text; one that has a place for an image, to a model that sees, comes without it."""
    if service.images is not None and IMAGE in text:
        raise Refused(f"{name}: {IMAGE} in a text stands for an image, and those come in /v1/chat/completions", name)
    return service.encode(name, text)


class Completions:
    """The shape of /v1/completions (`asked.Shape`)."""

    def __init__(self, values: dict[str, Any], service: Service):
        self._service, self._count, self._echo = service, values["n"], values["echo"]
        self._logprobs = values["logprobs"] is not None
        self._usage = asked.wants_usage(values)
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
        }
        self._offsets: dict[int, int] = {}

    def whole(self, answers: Sequence[Answer], pieces: Sequence[Piece]) -> dict:
        choices = [
            self._choice(place, answer, piece)
            for place, (answer, piece) in enumerate(zip(answers, pieces, strict=True))
        ]
        return self._head | {"choices": choices, "usage": asked.usage(answers, self._count)}

    def opening(self, answers: Sequence[Answer]) -> list[dict]:
        return []

    def events(self, place: int, answer: Answer, piece: Piece) -> list[dict]:
        usage = {"usage": None} if self._usage else {}
        return [self._head | {"choices": [self._choice(place, answer, piece)]} | usage]

    def failed(self, why: Refused) -> dict:
        return why.body

    def closing(self, answers: Sequence[Answer]) -> list[dict]:
        usage = {"choices": [], "usage": asked.usage(answers, self._count)}
        return [self._head | usage] if self._usage else []

    def _choice(self, place: int, answer: Answer, piece: Piece) -> dict:
        text, listed = piece.text, _Listed(self._service, self._offsets.get(place, 0))
        if place not in self._offsets and self._echo:
            text = self._service.tokenizer.decode(list(answer.prompt)) + text
            listed.add(answer.prompt[:1], [None], [None])
            listed.add(answer.prompt[1:], answer.prompt_logprobs, answer.prompt_top)
        listed.add(piece.tokens, piece.logprobs, piece.top)
        self._offsets[place] = listed.offset
        return {
            "index": place,
            "text": text,
            "logprobs": listed.lists if self._logprobs else None,
            "finish_reason": piece.finish,
        }


class _Listed:
    """The lists of `logprobs`; offset: characters of all tokens so far."""

    def __init__(self, service: Service, offset: int):
        self._name_of, self.offset = service.name_of, offset
        self.lists: dict[str, list] = {name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}

    def add(self, tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[list | None]) -> None:
        for token, logprob, top in zip(tokens, logprobs, tops, strict=False):  # none were asked for: none are listed
            name = self._name_of(token)
            self.lists["tokens"].append(name)
            self.lists["token_logprobs"].append(None if logprob is None else asked.finite(logprob))
            self.lists["top_logprobs"].append(None if top is None else self._named([*top, [token, logprob]]))
            self.lists["text_offset"].append(self.offset)
            self.offset += len(name)

    def _named(self, top: Sequence[Sequence]) -> dict[str, float]:
        """Log-probabilities by the tokens' texts; a second token of the same text is known by its id."""
        found: dict[str, int] = {}
        named = {}
        for token, logprob in top:
            name = self._name_of(token)
            name = name if found.setdefault(name, token) == token else f"token_id:{token}"
            named[name] = asked.finite(logprob)
        return named
