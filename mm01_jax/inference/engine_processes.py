"""One engine over several processes: the first is asked, all of them step alike.

    engine = lead(Engine(model, ...))          in process 0; then as any engine, and `close` in the end
    follow(Engine(model, ...))                 in all others; returns when the first has closed

Before each step the first process says what it was asked since the last: a few bytes to every process. What follows is
decided by all of them alike. A process that dies ends the others: the next collective fails, and says so with its name.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mm01_jax import job
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_answers import shown
from mm01_jax.inference.engine_request import Event, Request, Result, check, check_count
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.stops import stops


class Led:
    """An engine as the first process asks it: each call is taken note of, and done by everyone at the next step."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._asked: list[list[Any]] = []
        self._next, self._unsaid = engine.asked, range(0)  # the next id; those that the others have not heard of
        self._forgotten: set[int] = set()  # since the last step

    def submit(self, request: Request) -> int:
        """As the engine's; the id is known before the request is."""
        check(request, self.engine.limits)
        return self._note("submit", _plain(request), new=1)[0]

    def submit_samples(self, request: Request, count: int) -> list[int]:
        check(request, self.engine.limits)
        check_count("count", count, 1, None)
        return self._note("submit_samples", _plain(request), int(count), new=int(count))

    def cancel(self, id: int) -> None:
        self._note("cancel", self._known(id))

    def preempt(self, id: int) -> None:
        self._note("preempt", self._known(id))

    def forget(self, id: int) -> Result:
        """The result of a finished request, of which all processes know no more from their next step on."""
        result = self.result(id)
        if result.finish is None:
            raise ValueError(f"request {id} goes on; cancel it first")
        self._note("forget", id)
        self._forgotten.add(id)
        return result

    def step(self) -> list[Event]:
        return self._say()

    def run(self) -> None:
        while self._asked or not self.engine.idle:
            self.step()

    def stream(self, id: int) -> Iterator[int]:
        """As the engine's, as is `stream_text`."""
        for tokens in shown(self.result(id), lambda result: result.tokens, self.step):
            yield from tokens

    def stream_text(self, id: int) -> Iterator[str]:
        yield from filter(None, shown(self.result(id), lambda result: result.text, self.step))

    def result(self, id: int) -> Result:
        """What a request has so far; one that the others have not heard of begins with that."""
        if self._known(id) in self._unsaid:
            self.step()
        return self.engine.result(id)

    def statistics(self) -> dict:
        return self.engine.statistics()

    def close(self) -> None:
        """Lets the others go."""
        self._asked.append(["close"])
        self._say()

    def _note(self, what: str, *of: Any, new: int = 0) -> list[int]:
        """Takes note of a call of the engine; the ids that it makes."""
        self._asked.append([what, *of])
        ids = range(self._next, self._next + new)
        self._next += new
        self._unsaid = range(self._next - len(self._unsaid) - new, self._next)
        return [*ids]

    def _known(self, id: int) -> int:
        """The id, which all processes will know when they hear of it: there each that is none would be a failure."""
        if id in self._forgotten:
            raise ValueError(f"request {id!r}: the engine knows none of this id")
        if id not in self._unsaid:
            self.engine.result(id)
        return id

    def _say(self) -> list[Event]:
        asked, self._asked, self._unsaid, self._forgotten = self._asked, [], range(0), set()
        said = json.dumps(asked, default=lambda number: number.item()).encode()  # NumPy's
        with _named():
            return _do(self.engine, json.loads(_from_first(said)))


def lead(engine: Engine) -> Led:
    """In process 0 alone."""
    return Led(engine)


def follow(engine: Engine, each: Callable[[list[Event]], None] = lambda _: None) -> None:
    """Does what the first process does, until it closes; `each` gets what every step brought.

    Raises:
      RuntimeError: another process has died; names it (of more than two, those that it may be).
    """
    while True:
        with _named():
            asked = json.loads(_from_first(b""))
            if ["close"] in asked:
                return
            events = _do(engine, asked)
        each(events)


def _do(engine: Engine, asked: list[list[Any]]) -> list[Event]:
    for what, *of in asked:
        if what.startswith("submit"):
            getattr(engine, what)(_request(of[0]), *of[1:])
        elif what == "close":
            return []
        else:
            getattr(engine, what)(*of)
    return engine.step()


def _from_first(data: bytes) -> bytes:
    """The bytes of the first process."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(1 << max(8, (size - 1).bit_length()), np.uint8)  # few lengths: few programs
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size])


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """What a collective says when another process is no longer there, with that process's name."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1:
            raise
        raise job.Gone(job.gone(str(error).splitlines()[0])) from None


def _plain(request: Request) -> dict[str, Any]:
    if request.mask is not None:
        raise ValueError("mask: got a hook; allowed: none over several processes, which would have to ask it alike")
    fields = dataclasses.asdict(request)
    for name in ("prompt", "stop_ids", "expected"):
        fields[name] = [int(token) for token in fields[name]]
    for name in ("max_tokens", "seed", "priority", "place"):
        fields[name] = int(fields[name])
    fields["content"], fields["stop"] = request.content.hex(), stops(request.stop).strings
    fields["sampling"]["logit_bias"] = [
        (int(token), float(bias)) for token, bias in request.sampling.logit_bias.items()
    ]
    return fields


def _request(fields: dict[str, Any]) -> Request:
    sampling = fields["sampling"]
    sampling = Sampling(**sampling | {"logit_bias": dict(map(tuple, sampling["logit_bias"]))})
    changed = {
        "sampling": sampling,
        "content": bytes.fromhex(fields["content"]),
        "stop_ids": tuple(fields["stop_ids"]),
        "expected": tuple(fields["expected"]),
    }
    return Request(**fields | changed)
