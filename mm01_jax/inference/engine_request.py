"""What is asked of the engine and what it answers; whatever cannot be done is refused before anything is computed."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.config import VisionConfig
from mm01_jax.inference import masks
from mm01_jax.inference.asked import Shown, check_shown
from mm01_jax.inference.sampling import Sampling, check_seed
from mm01_jax.inference.stops import stops
from mm01_jax.messages import counted

Ids = list[int] | tuple[int, ...] | np.ndarray  # of tokens; not a `range`, which may be larger than any memory


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """Tokens to go on from, and how.

    prompt: whole numbers of the vocabulary, at least one. max_tokens: new tokens at most. sampling, seed: the same ones
    give the same tokens whatever else runs. stop_ids: ids that end the answer, the last of its tokens. stop: texts that
    end it, wherever tokens cut them: the answer's text ends before, its tokens with the one that completes the stop.
    mask: a hook that says what may come next (`masks.py`); it is asked for each token, and all wait for it. logprobs:
    how many of the likeliest tokens' log-probabilities are wanted with each new token's own; None: not even that.
    prompt_logprobs: the same of the prompt's tokens but the first; such a prompt is taken in whole.
    routed_experts: whether the experts that its tokens are routed to are wanted, of an engine that keeps them; such a
    prompt is taken in whole, too.
    guesses: whether an engine with `drafts` guesses what comes; expected: the answer, as far as somebody has an idea of
    it, to guess from. priority: a higher one is admitted first and may take a slot away. content: what beside its
    tokens and images the prompt means: states of prompts are found only by requests with the same. shows: the images
    that stand at its image tokens, of an engine with `tiles`. place: in a deterministic engine, where in a row of
    training the prompt begins; the slot has so many positions less. remember: whether what it takes in is kept for
    later requests; it finds what others left either way.
    """

    prompt: Ids
    max_tokens: int = 256
    sampling: Sampling = Sampling()
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: str | Sequence[str] = ()
    mask: masks.Hook | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    routed_experts: bool = False
    guesses: bool = True
    expected: Ids = ()
    priority: int = 0
    content: bytes = b""
    shows: Shown | None = None
    place: int = 0
    remember: bool = True

    @property
    def wants_whole(self) -> str | None:
        """Why nothing that is remembered of the prompt may stand for taking it in; None where it may."""
        if self.place:
            return "begins inside a row"
        if self.prompt_logprobs is not None:
            return "wants the prompt's log-probabilities"
        return "wants the prompt's routed experts" if self.routed_experts else None


@dataclasses.dataclass
class Result:
    """What a request has so far.

    finish: None while it goes on, then "stop" (an id or a text that ends it), "length", "cancelled", or "masked": its
    hook left nothing to say, or is wrong; error: which.
    text: of the tokens, where the engine has a tokenizer: whole characters, and nothing that is or may become a stop.
    logprobs: the model's own, of each token, where asked for. top: for each token, (id, log-probability) of the
    likeliest. prompt_logprobs, prompt_top: the same of the prompt's tokens from the second on. routed_experts: int32
    (tokens, layers, top-k), the best first, where asked for: of the prompt's tokens and the answer's but the last, of
    which nothing is computed; there when the answer is. logits: float32 (V,) for each token where the engine keeps
    them. cached: tokens of the prompt whose states were there already; miss: why not more of them (`prefix.py`).
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    text: str = ""
    logprobs: list[float] = dataclasses.field(default_factory=list)
    top: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[float] = dataclasses.field(default_factory=list)
    prompt_top: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    routed_experts: np.ndarray | None = None
    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    cached: int = 0
    miss: str | None = None


MOST_SAMPLES = 1024  # answers to one prompt


class Event(NamedTuple):
    """What a step brought a request: new tokens, and how it finished if it did."""

    id: int
    tokens: list[int]
    finish: str | None


class Limits(NamedTuple):
    """What an engine can do for one request.

    position_bytes, state_bytes: of the cache, on all devices together. reads_text: it has a tokenizer. deterministic,
    routed_experts, tiles: as in `Sizes`. vision: what images are; None: a model of text alone.
    """

    vocab_size: int
    max_length: int
    stop_ids: int
    logprobs: int
    position_bytes: int
    state_bytes: int
    reads_text: bool
    deterministic: bool
    routed_experts: bool
    vision: VisionConfig | None = None
    tiles: int = 0


def check(request: Request, limits: Limits) -> tuple[Request, np.ndarray]:
    """(the request as it is now: Python's numbers, copies of arrays that its owner may fill anew; its prompt as int32).

    Raises:
      ValueError: names the field, what was got, what is allowed.
    """
    if not isinstance(request, Request):
        raise ValueError(f"request: got a {type(request).__name__}; allowed: a Request")
    request = dataclasses.replace(request, **{name: _now(value) for name, value in vars(request).items()})
    if isinstance(request.prompt, str | bytes):
        raise ValueError(f"prompt: got text; allowed: token ids of it, 0 to {limits.vocab_size - 1}")
    prompt = whole_numbers("prompt", request.prompt, limits.vocab_size)
    if not len(prompt):
        raise ValueError("prompt: got no token; allowed: at least one")
    check_shown(prompt, request.shows, limits.vision, limits.tiles)
    check_count("max_tokens", request.max_tokens, 1, None)
    check_count("place", request.place, 0, None if limits.deterministic else 0)
    length = request.place + len(prompt) + request.max_tokens
    if length > limits.max_length:
        needs, has = (limits.state_bytes + limits.position_bytes * count for count in (length, limits.max_length))
        raise ValueError(
            f"{f'place={request.place}, ' if request.place else ''}prompt of {counted(len(prompt), 'token')} and "
            f"max_tokens={request.max_tokens} need {length} positions, {needs:,} bytes; a slot has "
            f"{limits.max_length}, {has:,} bytes; nearest: max_tokens="
            f"{max(1, limits.max_length - request.place - len(prompt))} and a prompt of at most {limits.max_length - 1}"
        )
    if not isinstance(request.sampling, Sampling):
        raise ValueError(f"sampling: got {request.sampling!r}; allowed: a Sampling")
    check_seed(request.seed)
    check_biases(request.sampling, limits.vocab_size)
    stop_ids = whole_numbers("stop_ids", request.stop_ids, limits.vocab_size)
    if len(stop_ids) > limits.stop_ids:
        raise ValueError(f"stop_ids: got {counted(len(stop_ids), 'id')}; allowed: at most {limits.stop_ids}")
    if (found := stops(request.stop)).ids:
        raise ValueError(f"stop: got the id {min(found.ids)}; allowed: texts; nearest: stop_ids=({min(found.ids)},)")
    if found.strings and not limits.reads_text:
        raise ValueError(f"stop: got {found.strings[0]!r}; allowed: ids in stop_ids, or an Engine(tokenizer=...)")
    whole_numbers("expected", request.expected, limits.vocab_size)
    _check_wanted(request, limits)
    check_count("priority", request.priority, None, None)
    if not (request.mask is None or callable(request.mask)):
        raise ValueError(f"mask: got {request.mask!r}; allowed: a function of the tokens so far, or None")
    if not isinstance(request.content, bytes):
        raise ValueError(f"content: got {request.content!r}; allowed: bytes")
    return request, prompt


def _now(value):
    """What a field holds now. NumPy's small whole numbers would wrap in a comparison, and in sums."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Shown):
        return Shown(*(np.array(part) if isinstance(part, np.ndarray) else part for part in value))
    if isinstance(value, Sampling):
        return dataclasses.replace(value)  # with a dict of its own
    return copy.copy(value) if isinstance(value, list | np.ndarray) else value


def _check_wanted(request: Request, limits: Limits) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        if (wants := getattr(request, name)) is not None:
            check_count(name, wants, 0, limits.logprobs)
    for name in ("routed_experts", "guesses", "remember"):
        check_switch(name, getattr(request, name))
    if request.routed_experts and not limits.routed_experts:
        raise ValueError("routed_experts: got True; allowed: False, or True of an Engine(routed_experts=True)")


def check_biases(sampling: Sampling, vocab_size: int) -> None:
    """ValueError where an id whose logit is moved is none of the vocabulary."""
    if bad := [token for token in sampling.logit_bias if token >= vocab_size]:
        raise ValueError(f"logit_bias: got the id {bad[0]}; allowed: 0 to {vocab_size - 1}")


def whole_numbers(name: str, values, vocab_size: int) -> np.ndarray:
    """int32 ids; ValueError where they are none of the vocabulary."""
    if not isinstance(values, np.ndarray | list | tuple):  # what has no order, or can be read once alone, is none
        raise ValueError(f"{name}: got a {type(values).__name__}; allowed: a list, tuple or array of token ids")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {values!r}; allowed: token ids") from None
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: got {array.dtype}{list(array.shape)}; allowed: a list of whole numbers")
    bad = array[(array < 0) | (array >= vocab_size)]
    if len(bad):
        raise ValueError(f"{name}: got the id {bad[0]}; allowed: 0 to {vocab_size - 1}")
    return array.astype(np.int32)


def check_count(name: str, value, least: int | None, most: int | None) -> None:
    """ValueError where a value is no whole number within the bounds."""
    bounds = [f"{word} {bound}" for word, bound in (("at least", least), ("at most", most)) if bound is not None]
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    fits = is_whole and (least is None or value >= least) and (most is None or value <= most)
    if not fits:
        raise ValueError(f"{name}: got {value!r}; allowed: a whole number {' and '.join(bounds)}".rstrip())


def check_switch(name: str, value) -> None:
    """ValueError where a value is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: got {value!r}; allowed: True or False")
