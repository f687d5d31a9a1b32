"""The engine's side of the server: takes what the HTTP process asks, steps, says what each step brought.

It hears    {"ask": number, "count": n, "prompt": ids, ...}   n answers; further names are fields of `Request`;
                                                                  of its hook, "grammar" the text; "shows" as
                                                                  `images.Pictures.shown` has it
            {"cancel": number}                                nobody waits for these any more
            {"done": true}                                    nothing will be asked any more, and nothing is open
and says    {"news": [[number, which of the n, what is new], ...]}
            {"refused": number, "why": text}
            {"drain": true}                                   a signal came: take nothing new, finish what is open
            {"statistics": {...}}                             about every second
"""

import base64
import contextlib
import gc
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from mm01_jax import signals
from mm01_jax.config import VisionConfig
from mm01_jax.inference.asked import Shown
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.grammars import Grammars
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.serve.channel import Channel, Gone
from mm01_jax.inference.serve.front import FrontGone

_IDLE_SECONDS, _STATISTICS_SECONDS = 0.5, 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Open(NamedTuple):
    """An answer under way: whose it is, and how much of it was said."""

    number: int
    which: int
    text: int = 0
    tokens: int = 0


class EngineLoop:
    """Runs until the HTTP process is done. grammars: what answers may be held to.

    Raises:
      FrontGone: that process has ended before.
    """

    def __init__(self, engine: Engine, channel: Channel, grammars: Grammars):
        self._engine, self._channel, self._grammars = engine, channel, grammars
        self._open: dict[int, _Open] = {}  # by the engine's id
        self._ids: dict[int, list[int]] = {}  # of every question
        self._counted = 0.0

    def run(self) -> None:
        gc.collect()
        gc.freeze()  # what is here stays: no step shall wait for a look through it
        while self._hear():
            if not self._engine.idle:
                self._tell([event.id for event in self._engine.step()])
            self._count()

    @contextlib.contextmanager
    def draining(self) -> Iterator[None]:
        """A context in which the first signal lets what is open finish; the next one ends as it does elsewhere."""
        came = []

        def drain(number: int, frame: FrameType | None) -> None:
            came.append(number)
            if len(came) == 1:
                self._channel.say({"drain": True})
            else:
                give_back()
                signal.raise_signal(number)

        give_back = signals.take(_SIGNALS, drain)
        try:
            yield
        finally:
            give_back()

    def _hear(self) -> bool:
        """Whether to go on; what is asked meanwhile is begun."""
        try:
            messages = self._channel.heard(_IDLE_SECONDS if self._engine.idle else 0.0)
        except Gone:
            raise FrontGone("the HTTP process has ended; what it said stands above") from None
        for message in messages:
            if "done" in message:
                return False
            if "cancel" in message:
                for id in self._ids.get(message["cancel"], ()):
                    self._engine.cancel(id)
            else:
                self._ask(message)
        return True

    def _ask(self, message: dict[str, Any]) -> None:
        number, count = message.pop("ask"), message.pop("count")
        try:
            ids = self._engine.submit_samples(self._request(message), count)
        except ValueError as error:
            self._channel.say({"refused": number, "why": str(error)})
            return
        self._ids[number] = ids
        self._open |= {id: _Open(number, which) for which, id in enumerate(ids)}

    def _request(self, message: dict[str, Any]) -> Request:
        sampling, grammar = message.pop("sampling"), message.pop("grammar", None)
        bias = {int(id): value for id, value in sampling.pop("logit_bias", {}).items()}
        message["stop_ids"] = tuple(message["stop_ids"])
        if "shows" in message:
            message["shows"] = shown(message["shows"], self._engine.limits.vision)
        hook = None if grammar is None else self._grammars.hook(grammar)
        return Request(**message, sampling=Sampling(**sampling, logit_bias=bias), mask=hook)

    def _tell(self, ids: list[int]) -> None:
        news = [[self._open[id].number, self._open[id].which, self._news(id)] for id in ids if id in self._open]
        if news:
            self._channel.say({"news": news})

    def _news(self, id: int) -> dict[str, Any]:
        """What is new of an answer; the engine forgets one that has finished."""
        told, result = self._open[id], self._engine.result(id)
        text, tokens = len(result.text), len(result.tokens)
        new = {"text": result.text[told.text :], "tokens": result.tokens[told.tokens :]}
        if result.logprobs:
            new |= {"logprobs": result.logprobs[told.tokens :], "top": result.top[told.tokens :]}
        if told.tokens == 0:
            new |= _of_prompt(result)
        if result.finish is None:
            self._open[id] = told._replace(text=text, tokens=tokens)
            return new
        new |= {"finish": result.finish, "error": result.error}
        self._engine.forget(id)
        del self._open[id]
        self._ids[told.number].remove(id)
        if not self._ids[told.number]:
            del self._ids[told.number]
        return new

    def _count(self) -> None:
        if (now := time.monotonic()) - self._counted >= _STATISTICS_SECONDS:
            self._counted = now
            self._channel.say({"statistics": self._engine.statistics()})


def shown(said: dict[str, Any], vision: VisionConfig) -> Shown:
    """What a prompt shows, of what `images.Pictures.shown` says."""
    from mm01_jax.data.images.processor import normalise  # needs pillow, which text alone does not

    tiles = np.frombuffer(base64.b64decode(said["tiles"]), np.uint8)
    tiles = tiles.reshape(-1, vision.image_size, vision.image_size, 3)
    return Shown(normalise(tiles), np.array(said["index"], np.int32))


def _of_prompt(result: Result) -> dict[str, Any]:
    new = {"cached": result.cached}
    if result.prompt_logprobs:
        new |= {"prompt_logprobs": result.prompt_logprobs, "prompt_top": result.prompt_top}
    return new
