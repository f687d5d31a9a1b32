"""The HTTP side of the channel: asks the engine's process, and keeps what is new of each answer until it is read.

Whoever reads slowly gets several tokens at a time: what came meanwhile is one piece.
"""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Sequence
from typing import Any

from mm01_jax.inference.serve import channel
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.metrics import Metrics


class Answer:
    """One answer: what is new since it was last read, and sums.

    finish: None while it goes on. pending: whether there is something to read. last: when its last tokens came.
    """

    def __init__(self, prompt: Sequence[int]):
        self.prompt, self.finish, self.error, self.cached, self.count = prompt, None, None, 0, 0
        self.prompt_logprobs: list[float] = []
        self.prompt_top: list[list] = []
        self.pending, self.last = False, None
        self._clear()

    def add(self, new: dict[str, Any]) -> None:
        self.text += new["text"]
        self.tokens += new["tokens"]
        self.logprobs += new.get("logprobs", [])
        self.top += new.get("top", [])
        self.count += len(new["tokens"])
        self.pending = True
        for name in ("finish", "error", "cached", "prompt_logprobs", "prompt_top"):
            if name in new:
                setattr(self, name, new[name])

    def take(self) -> "Piece":
        piece = Piece(self.text, self.tokens, self.logprobs, self.top, self.finish)
        self._clear()
        return piece

    def _clear(self) -> None:
        self.text, self.tokens, self.logprobs, self.top, self.pending = "", [], [], [], False


class Piece:
    """What is new of an answer; finish: how it ended, with its last piece."""

    def __init__(self, text: str, tokens: list[int], logprobs: list[float], top: list[list], finish: str | None):
        self.text, self.tokens, self.logprobs, self.top, self.finish = text, tokens, logprobs, top, finish


class Question:
    """Several prompts with `count` answers each: answer i of prompt p is `answers[p * count + i]`.

    streams: whether its reader wants to know of every piece; otherwise of the end alone. of_prompts: whether of the
    prompts alone.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], count: int, streams: bool, of_prompts: bool = False):
        self.answers = [Answer(prompt) for prompt in prompts for _ in range(count)]
        self.count, self.streams, self.of_prompts, self.failed = count, streams, of_prompts, None
        self.began = time.monotonic()
        self.changed = asyncio.Event()

    @property
    def finished(self) -> bool:
        return all(answer.finish is not None for answer in self.answers)

    async def news(self) -> list[tuple[int, Piece]]:
        """(place, what is new) of the answers that have something new.

        Raises:
          Refused: the engine refused it, or has ended.
        """
        while True:
            if self.failed is not None:
                raise self.failed
            if new := [(place, answer.take()) for place, answer in enumerate(self.answers) if answer.pending]:
                return new
            self.changed.clear()
            await self.changed.wait()


class Link:
    """`listen` runs as long as the engine. keys, ready: what it says first. told: the last of its statistics."""

    STALLED_SECONDS = 60.0  # without a word of an engine that says something about every second

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count()
        self._asked: dict[int, tuple[Question, int]] = {}  # number -> (question, place of the prompt's first answer)
        self.keys, self.ready = (asyncio.get_running_loop().create_future() for _ in range(2))
        self.draining, self.told, self._told_at = asyncio.Event(), {}, None
        self.metrics = Metrics(lambda: self.told, lambda: self.open)

    @property
    def open(self) -> int:
        """Answers under way."""
        return len(self.answers)

    @property
    def stalled(self) -> bool:
        """Whether the engine has said nothing for so long that it hangs."""
        return self._told_at is not None and time.monotonic() - self._told_at > self.STALLED_SECONDS

    @property
    def answers(self) -> list[Answer]:
        """Those under way, in the order in which they were asked."""
        asked = [question.answers[first : first + question.count] for question, first in self._asked.values()]
        return [answer for answers in asked for answer in answers if answer.finish is None]

    def ask(self, prompts: Sequence[Sequence[int]], count: int, request: dict[str, Any], *, streams: bool) -> Question:
        """A request of no token gets one of the engine, which has to draw, and nobody hears of it; without a seed each
        prompt has its own, also one that stands there twice."""
        question = Question(prompts, count, streams, of_prompts=request["max_tokens"] == 0)
        request = request | {"max_tokens": max(1, request["max_tokens"])}
        for place, prompt in enumerate(prompts):
            number = next(self._numbers)
            self._asked[number] = question, place * count
            seed = secrets.randbits(63) if request["seed"] is None else request["seed"]
            self._say({"ask": number, "count": count, "prompt": prompt, **request, "seed": seed})
        return question

    def cancel(self, question: Question) -> None:
        """Nobody waits for what is left of it."""
        for number in [number for number, (other, _) in self._asked.items() if other is question]:
            del self._asked[number]
            self._say({"cancel": number})

    def serving(self) -> None:
        """From here on requests are answered."""
        self._say({"serving": True})

    async def close(self) -> None:
        """Nothing is open, and nothing will be asked any more."""
        with contextlib.suppress(ConnectionError):
            self._say({"done": True})
            self._writer.close()
            await self._writer.wait_closed()

    async def listen(self) -> None:
        """Until the engine's process has ended."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self._hear(await channel.read(self._reader))
        for question, _ in self._asked.values():
            self._fail(question, Refused("the engine has ended", status=500))
        self._asked.clear()

    def _hear(self, message: dict[str, Any]) -> None:
        for number, which, new in message.get("news", ()):
            if number in self._asked:
                self._note(number, which, new)
        if "refused" in message and message["refused"] in self._asked:
            question, _ = self._asked[message["refused"]]
            self.cancel(question)
            name = message["why"].partition(":")[0]
            self._fail(question, Refused(message["why"], name if name.isidentifier() else None))
        for name in ("keys", "ready"):
            if name in message:
                getattr(self, name).set_result(message[name])
        if "drain" in message:
            self.draining.set()
        if "statistics" in message:
            self.told, self._told_at = message["statistics"], time.monotonic()

    def _note(self, number: int, which: int, new: dict[str, Any]) -> None:
        question, first = self._asked[number]
        answer = question.answers[first + which]
        if question.of_prompts:
            ended = {"finish": "length"} if new.get("finish") == "stop" else {}
            new = new | {"text": "", "tokens": [], "logprobs": [], "top": []} | ended
        answer.add(new)
        if new["tokens"]:
            self._time(question, answer, len(new["tokens"]))
        if all(answer.finish is not None for answer in question.answers[first : first + question.count]):
            del self._asked[number]
        if question.streams or question.finished:
            question.changed.set()

    def _time(self, question: Question, answer: Answer, count: int) -> None:
        """Notes when so many tokens came; those that came together share the time since the last."""
        now = time.monotonic()
        if answer.last is None:
            self.metrics.first_token.observe(now - question.began)
        else:
            for _ in range(count):
                self.metrics.next_token.observe((now - answer.last) / count)
        answer.last = now

    def _fail(self, question: Question, why: Refused) -> None:
        question.failed = why
        question.changed.set()

    def _say(self, message: dict[str, Any]) -> None:
        self._writer.write(channel.packed(message))
