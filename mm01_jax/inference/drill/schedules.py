"""Random schedules: requests come, are cancelled and preempted, are taken in by more or fewer pieces at a time.

After each schedule every request's tokens and logits are compared, bit by bit, with those that it has alone.
"""

import dataclasses

import jax
import numpy as np

from mm01_jax.inference.drill.cases import Cases
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Result
from mm01_jax.progress import Watch


@dataclasses.dataclass
class Count:
    """Requests of all schedules. equal: tokens, logits and log-probabilities have the bits that they have alone, of one
    that was cancelled as far as it came. differing_tokens: requests whose tokens already differ. kl: the largest
    divergence, in nats, of a token's distribution from the one alone, where both followed the same tokens.
    """

    schedules: int = 0
    requests: int = 0
    equal: int = 0
    different: int = 0
    differing_tokens: int = 0
    cancelled: int = 0
    tokens: int = 0
    kl: float = 0.0


class Compiled:
    """How many programs are compiled while it is open: `count`."""

    def __enter__(self) -> "Compiled":
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, *_, **__) -> None:
        self.count += "backend_compile" in event


def run_schedule(engine: Engine, cases: Cases, size: int, random: np.random.Generator, count: Count) -> None:
    """One schedule of `size` requests, until all have ended. Of a long one is said how far it is."""
    watch = Watch(f"schedule {count.schedules + 1}, requests that have ended", size)
    numbers = [int(number) for number in random.integers(len(cases.requests), size=size)]
    ids, ended = [], 0
    eagerness = float(random.choice([0.5, 2.0, size]))
    restlessness = float(random.choice([0.0, 0.1, 0.5]))
    while len(ids) < size or not engine.idle:
        for number in numbers[len(ids) :][: int(random.poisson(eagerness))]:
            priority = int(random.integers(3)) if restlessness else 0
            changes = {"priority": priority, "guesses": bool(random.integers(4))}
            expected = _half_right(cases.cold(number).tokens, random)
            ids.append(engine.submit(dataclasses.replace(cases.requests[number], expected=expected, **changes)))
        if ids and random.random() < restlessness:
            engine.preempt(int(random.choice(ids)))
        if ids and random.random() < restlessness / 4:
            engine.cancel(int(random.choice(ids)))
        engine.budget = engine.sizes.grid * int(random.integers(1, engine.sizes.pieces + 1))
        ended += sum(event.finish is not None for event in engine.step())
        watch.at(ended)
    count.schedules += 1
    watch = Watch(f"schedule {count.schedules}, answers compared", size)
    for done, (id, number) in enumerate(zip(ids, numbers, strict=True)):
        _compare(engine.forget(id), cases.cold(number), count)
        watch.at(done)


def _half_right(tokens: list[int], random: np.random.Generator) -> list[int]:
    """An answer to expect, wrong here and there, or nothing."""
    wrong = random.random(len(tokens)) < random.choice([0.0, 0.3, 1.0])
    return [token ^ int(bad) for token, bad in zip(tokens, wrong, strict=True)]


def _compare(found: Result, alone: Result, count: Count) -> None:
    cancelled = found.finish == "cancelled"
    tokens, logits, logprobs = alone.tokens, alone.logits, alone.logprobs
    if cancelled:
        tokens, logits, logprobs = (x[: len(found.tokens)] for x in (tokens, logits, logprobs))
    same_tokens = found.tokens == tokens and (cancelled or found.finish == alone.finish)
    same = same_tokens and len(found.logits) == len(logits) and found.logprobs == logprobs
    same = same and all(
        np.array_equal(a.view(np.uint32), b.view(np.uint32)) for a, b in zip(found.logits, logits, strict=True)
    )
    count.requests += 1
    count.cancelled += cancelled
    count.tokens += len(found.tokens)
    count.equal += same
    count.different += not same
    count.differing_tokens += not same_tokens
    if not same:
        for a, b, *tokens in zip(found.logits, logits, found.tokens, alone.tokens, strict=False):
            count.kl = max(count.kl, _divergence(a, b))
            if tokens[0] != tokens[1]:
                break


def _divergence(found: np.ndarray, alone: np.ndarray) -> float:
    """KL(alone || found) in float64."""
    p, q = (x.astype(np.float64) - x.max() for x in (alone, found))
    p, q = (x - np.log(np.exp(x).sum()) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum())
