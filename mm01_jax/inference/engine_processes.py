"""One engine over several processes: the first is asked, all of them step alike.

    engine = lead(Engine(model, ...))          in process 0; then as any engine, and `close` in the end
    follow(Engine(model, ...))                 in all others; returns when the first has closed

Before each step the first process says what it was asked since the last: a few bytes to every process, with the tiles
of images that were asked about. What follows is decided by all of them alike; hooks of requests (`masks.py`) are the
first's alone, which says what they said. A process that dies ends the others: the next collective fails, and says so
with its name.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mm01_jax import job
from mm01_jax.inference import masks
from mm01_jax.inference.asked import Shown
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import MOST_SAMPLES, Event, Request, Result, check, check_count
from mm01_jax.inference.engine_streams import Streams, between_steps, whole_step
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.stops import stops


class Led(Streams):
    """An engine as the first process asks it: each call is taken note of, and done by everyone at the next step."""

    def __init__(self, engine: Engine):
        self.engine, self.limits = engine, engine.limits
        self._asked: list[list[Any]] = []
        self._next, self._unsaid = engine.asked, range(0)  # the next id; those that the others have not heard of
        self._forgotten: set[int] = set()  # since the last step
        self._hooks: list[masks.Hook] = []  # of requests since then
        self._shown: list[Shown] = []  # as well
        engine.ask = _ask_and_say

    def submit(self, request: Request) -> int:
        """As the engine's; the id is known before the request is."""
        request, _ = check(request, self.limits)
        return self._note("submit", self._plain(request), new=1)[0]

    def submit_samples(self, request: Request, count: int) -> list[int]:
        request, _ = check(request, self.limits)
        check_count("count", count, 1, MOST_SAMPLES)
        return self._note("submit_samples", self._plain(request), int(count), new=int(count))

    @between_steps
    def cancel(self, id: int) -> None:
        self._note("cancel", self._known(id))

    @between_steps
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

    @whole_step
    def step(self) -> list[Event]:
        return self._say()

    @property
    def idle(self) -> bool:
        return not self._asked and self.engine.idle

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

    def _plain(self, request: Request) -> dict[str, Any]:
        """A request as JSON has it, of its hook and its images their numbers among those since the last step."""
        fields = _plain(dataclasses.replace(request, mask=None, shows=None))
        if request.mask is not None:
            fields["mask"] = len(self._hooks)
            self._hooks.append(request.mask)
        if request.shows is not None:
            fields["shows"] = len(self._shown)
            self._shown.append(request.shows)
        return fields

    def _say(self) -> list[Event]:
        asked, self._asked, self._unsaid, self._forgotten = self._asked, [], range(0), set()
        (hooks, self._hooks), (shown, self._shown) = (self._hooks, []), (self._shown, [])
        with _named():
            asked, shown = _unpacked(_from_first(_packed(asked, shown)))
            return _do(self.engine, asked, hooks.__getitem__, shown)


def lead(engine: Engine) -> Led:
    """In process 0 alone."""
    return Led(engine)


def follow(engine: Engine, each: Callable[[list[Event]], None] = lambda _: None) -> None:
    """Does what the first process does, until it closes; `each` gets what every step brought.

    Raises:
      RuntimeError: another process has died; names it (of more than two, those that it may be).
    """
    engine.ask = lambda *_: _said(_from_first(b""))
    while True:
        with _named():
            asked, shown = _unpacked(_from_first(b""))
            if ["close"] in asked:
                return
            events = _do(engine, asked, lambda _: _elsewhere, shown)
        each(events)


def _elsewhere(tokens: list[int]):
    """The hook of a request whose own is in another process."""
    raise AssertionError("the first process asks hooks")


def _ask_and_say(asked: Sequence[tuple[masks.Hook, Sequence[int]]], allowed_V: np.ndarray) -> list[masks.Said]:
    """What hooks say, said to the other processes."""
    said = masks.ask_all(asked, allowed_V)
    words = b"".join(one.words.astype("<u4").tobytes() for one in said if one.words is not None)
    told = json.dumps([(one.words is not None, one.free, one.error) for one in said])
    return _said(_from_first(told.encode() + b"\n" + words))


def _said(data: bytes) -> list[masks.Said]:
    told, _, words = data.partition(b"\n")
    told = json.loads(told)
    count = sum(has_words for has_words, *_ in told)
    rows = iter(np.frombuffer(words, "<u4").reshape(count, -1) if count else ())
    return [masks.Said(next(rows) if has_words else None, *others) for has_words, *others in told]


def _packed(asked: list[list[Any]], shown: Sequence[Shown]) -> bytes:
    """What is said before a step: a line of JSON, then tiles and index tables."""
    shapes = [one.tiles.shape for one in shown]
    lengths = [len(one.index) for one in shown]
    said = json.dumps([asked, shapes, lengths], default=lambda number: number.item())  # NumPy's
    arrays = [part for one in shown for part in (one.tiles.astype("<f4"), np.asarray(one.index).astype("<i4"))]
    return b"".join([said.encode(), b"\n", *(array.tobytes() for array in arrays)])


def _unpacked(data: bytes) -> tuple[list[list[Any]], list[Shown]]:
    said, _, rest = data.partition(b"\n")
    asked, shapes, lengths = json.loads(said)
    words, shown = np.frombuffer(rest, "<u4"), []
    for shape, length in zip(shapes, lengths, strict=True):
        tiles, index, words = np.split(words, np.cumsum([math.prod(shape), length]))
        shown.append(Shown(tiles.view("<f4").reshape(shape), index.view("<i4")))
    return asked, shown


def _do(
    engine: Engine, asked: list[list[Any]], hook: Callable[[int], masks.Hook], shown: Sequence[Shown]
) -> list[Event]:
    for what, *of in asked:
        if what.startswith("submit"):
            getattr(engine, what)(_request(of[0], hook, shown), *of[1:])
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


def _request(fields: dict[str, Any], hook: Callable[[int], masks.Hook], shown: Sequence[Shown]) -> Request:
    sampling, number, shows = (fields[name] for name in ("sampling", "mask", "shows"))
    sampling = Sampling(**sampling | {"logit_bias": dict(map(tuple, sampling["logit_bias"]))})
    changed = {
        "sampling": sampling,
        "mask": None if number is None else hook(number),
        "shows": None if shows is None else shown[shows],
        "content": bytes.fromhex(fields["content"]),
        "stop_ids": tuple(fields["stop_ids"]),
        "expected": tuple(fields["expected"]),
    }
    return Request(**fields | changed)
