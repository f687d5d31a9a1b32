"""What both ways to ask, completions and chat, have in common: fields, and what the engine is asked for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mm01_jax.inference.serve import fields
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.serve.link import Answer, Piece
from mm01_jax.inference.serve.service import Service

if TYPE_CHECKING:  # needs pillow, which text alone does not
    from mm01_jax.inference.serve.images import Pictures

MOST_ANSWERS, MOST_BIASES = 128, 300
_LEAST_TOP_P = 1e-9  # of the engine's, which wants more than 0: the likeliest token alone
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
)


class Shape(Protocol):
    """How answers look to a client; it may hold what it has said of each of them."""

    def whole(self, answers: Sequence[Answer], pieces: Sequence[Piece]) -> dict:
        """The body of an answer that is not streamed; `pieces` are all of each answer."""

    def opening(self, answers: Sequence[Answer]) -> list[dict]:
        """Events before any text."""

    def events(self, place: int, answer: Answer, piece: Piece) -> list[dict]:
        """What is new of an answer."""

    def closing(self, answers: Sequence[Answer]) -> list[dict]:
        """Events after all text."""

    def failed(self, why: Refused) -> dict:
        """The event of an answer that cannot go on."""


class Asked(NamedTuple):
    """prompts: token ids. count: answers to each. request: what else the engine is told. streams: as events. pictures:
    what the prompt's image tokens show.
    """

    prompts: list[list[int]]
    count: int
    request: dict[str, Any]
    streams: bool
    shape: Shape
    pictures: "Pictures | None" = None


def common(service: Service, most_tokens: int) -> dict[str, Field]:
    """The fields that both have. What does nothing here is allowed as far as leaving it out does the same."""
    return {
        "model": Field(fields.text, required=True),
        "temperature": Field(fields.number(0, 2), 1.0),
        "top_p": Field(fields.number(0, 1), 1.0),
        "top_k": Field(fields.whole(0, 2**31 - 1), 0),
        "min_p": Field(fields.number(0, 1), 0.0),
        "repetition_penalty": Field(fields.number(0.01, 100), 1.0),
        "presence_penalty": Field(fields.number(-2, 2), 0.0),
        "frequency_penalty": Field(fields.number(-2, 2), 0.0),
        "logit_bias": Field(fields.logit_bias(service.vocab_size, MOST_BIASES), {}),
        "n": Field(fields.whole(1, MOST_ANSWERS), 1),
        "seed": Field(fields.whole(-(2**63), 2**63 - 1)),
        "max_tokens": Field(fields.whole(1, most_tokens)),
        "stop": Field(fields.stop, []),
        "ignore_eos": Field(fields.switch, False),  # vLLM's name: clients that measure want answers of one length
        "best_of": Field(fields.one_of(1)),
        "stream": Field(fields.switch, False),
        "stream_options": Field(_stream_options),
        "user": Field(fields.text),
    }


def check(values: dict[str, Any], service: Service) -> None:
    """What a field may be beside others."""
    service.check_model(values["model"])
    if values["stream_options"] is not None and not values["stream"]:
        raise Refused("stream_options: allowed with stream=true alone", "stream_options")


def check_end(values: dict[str, Any]) -> None:
    """Refuses an answer of a form that does not end with it."""
    if values["ignore_eos"]:
        raise Refused("ignore_eos: allowed without response_format and calls that are asked for", "ignore_eos")


def engine_request(values: dict[str, Any], longest: int, stop_ids: Sequence[int], service: Service) -> dict[str, Any]:
    """What the engine is told beside the prompts, of which the longest has so many tokens."""
    sampling = {name: values[name] for name in _SAMPLING}
    sampling["top_p"] = max(sampling["top_p"], _LEAST_TOP_P)
    seed = values["seed"]
    return {
        "max_tokens": service.context - longest if values["max_tokens"] is None else values["max_tokens"],
        "sampling": sampling,
        "seed": None if seed is None else seed % 2**64,
        "stop_ids": list(stop_ids),
        "stop": values["stop"],
    }


def check_length(
    name: str,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | None,
    service: Service,
    most_name: str = "max_tokens",
) -> int:
    """The tokens of the longest prompt. name, most_name: of the fields.

    Raises:
      Refused: a prompt that is empty, or too long for a slot with what is to come.
    """
    if not all(prompts):
        raise Refused(f"{name}: got no token; allowed: at least one", name)
    longest, code = max(map(len, prompts)), "context_length_exceeded"
    if longest >= service.context:
        allowed = f"at most {service.context - 1:,}, with one more to come"
        raise Refused(f"{name}: got {longest:,} tokens; allowed: {allowed}", name, code=code)
    if max_tokens is not None and longest + max_tokens > service.context:
        allowed = f"at most {service.context - longest:,}, behind {longest:,} tokens of {service.context:,}"
        raise Refused(f"{most_name}: got {max_tokens:,}; allowed: {allowed}", most_name, code=code)
    return longest


def usage(answers: Sequence[Answer], count: int, reasoning: int = 0) -> dict[str, Any]:
    """Tokens of the prompts, each once, and of all answers; reasoning: tokens of thoughts among those."""
    first = answers[::count]
    prompt, completion = sum(len(one.prompt) for one in first), sum(answer.count for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached for one in first)},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def wants_usage(values: dict[str, Any]) -> bool:
    return bool(values["stream_options"] and values["stream_options"]["include_usage"])


def finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, -9999.0)


def _stream_options(name: str, value: Any) -> dict[str, bool]:
    known = {"include_usage": Field(fields.switch, False), "include_obfuscation": Field(fields.one_of(False), False)}
    return fields.read(value, known, name)
