"""What comes of an answer, as it comes, of what takes steps and knows results: an engine, or one that leads others."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Concatenate

from mm01_jax.inference.engine_request import Event, Limits, Result


def between_steps[**P, T](method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A method that a hook of the same engine may not call: half of a step is done then.

    Raises (the method):
      ValueError: the engine steps.
    """

    @functools.wraps(method)
    def checked(self: "Streams", *given: P.args, **told: P.kwargs) -> T:
        if self.steps_now:
            raise ValueError(f"{method.__name__}: called by a hook of a request; allowed: between two steps")
        return method(self, *given, **told)

    return checked


def whole_step[T](method: Callable[[Any], T]) -> Callable[[Any], T]:
    """The method that is a step, within which none of `between_steps` may be called, nor itself."""

    @functools.wraps(method)
    def step(self: "Streams") -> T:
        self.steps_now = True
        try:
            return method(self)
        finally:
            self.steps_now = False

    return between_steps(step)


class Streams:
    """Going on until an answer, or everything, has finished."""

    limits: Limits
    steps_now: bool = False
    idle: bool
    step: Callable[[], list[Event]]
    result: Callable[[int], Result]

    def run(self) -> None:
        """Steps until everything has finished."""
        while not self.idle:
            self.step()

    def stream(self, id: int) -> Iterator[int]:
        """New tokens of a request as they come; others go on meanwhile. Leaving it early leaves the request running."""
        for tokens in _shown(self.result(id), lambda result: result.tokens, self.step):
            yield from tokens

    def stream_text(self, id: int) -> Iterator[str]:
        """The same of the text, in pieces that are certain: no half of a character or of a stop.

        Raises:
          ValueError: nobody can read the tokens.
        """
        if not self.limits.reads_text:
            raise ValueError(
                "stream_text: no tokenizer reads the answer; allowed: stream; nearest: Engine(tokenizer=...)"
            )
        return filter(None, _shown(self.result(id), lambda result: result.text, self.step))


def _shown(result: Result, what: Callable[[Result], Any], step: Callable[[], object]) -> Iterator:
    """What comes new to `what` of a result, again and again until it has finished; `step` goes on meanwhile."""
    count = 0
    while True:
        new = what(result)[count:]
        count += len(new)
        yield new
        if count < len(what(result)):  # others stepped while this one was waited for
            continue
        if result.finish is not None:
            return
        step()
