"""What Prometheus may read of the server at /metrics: requests and latencies as clients see them, the engine's counts.

Names and labels are few and fixed: nothing that a client sends becomes one.
"""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_COUNTS = {
    "prefilled_tokens": "tokens of prompts that were computed",
    "decoded_tokens": "tokens that were drawn",
    "guessed_tokens": "tokens that were guessed right",
    "preempted": "answers that made room for others, and went on later",
    "finished": "answers that ended",
    "cancelled": "answers that nobody waited for any more",
}
_PREFIX_COUNTS = {
    "lookups": "prompts that were looked for among the remembered ones",
    "hits": "prompts of which something was remembered",
    "asked_tokens": "tokens of prompts that were looked for",
    "reused_tokens": "tokens of prompts that were not computed again",
    "evicted_states": "remembered states that were dropped",
    "evicted_pages": "remembered pages that were dropped",
}
_PREFIX_NOW = {
    "pages": "remembered pieces",
    "states": "remembered states",
    "bytes": "bytes of that",
    "host_bytes": "of them on the host",
}


class Metrics:
    """statistics: what the engine said last (`Engine.statistics`), {} before it has. open: answers under way."""

    def __init__(self, statistics: Callable[[], dict[str, Any]], open_answers: Callable[[], int]):
        self._registry = CollectorRegistry()
        registered = {"registry": self._registry, "namespace": "mm01"}
        self.requests = Counter("requests", "requests that were answered", ("path", "status"), **registered)
        self.prompt_tokens = Counter("prompt_tokens", "tokens of prompts, each answered once", **registered)
        self.cached_tokens = Counter("cached_tokens", "of those, remembered ones", **registered)
        self.generated_tokens = Counter("generated_tokens", "tokens of answers that were said", **registered)
        self.first_token = Histogram(
            "time_to_first_token_seconds", "from a request to its first token", buckets=_SECONDS, **registered
        )
        self.next_token = Histogram(
            "inter_token_seconds", "between two tokens of an answer", buckets=_TOKEN_SECONDS, **registered
        )
        self.whole = Histogram("request_seconds", "from a request to its end", buckets=_SECONDS, **registered)
        self._registry.register(_Engine(statistics, open_answers))
        ProcessCollector(namespace="mm01_http", registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Engine:
    """The engine's own numbers, as it said them last, about a second ago."""

    def __init__(self, statistics: Callable[[], dict[str, Any]], open_answers: Callable[[], int]):
        self._statistics, self._open = statistics, open_answers

    def collect(self) -> Iterator[Any]:
        now = self._statistics()
        prefix = now.get("prefix", {})
        yield GaugeMetricFamily("mm01_open_answers", "answers that run or wait", self._open())
        yield GaugeMetricFamily("mm01_queue", "answers that wait for a slot", now.get("waiting", 0))
        slots = GaugeMetricFamily("mm01_slots", "slots by what they do", labels=("state",))
        slots.add_metric(("running",), now.get("running", 0))
        slots.add_metric(("free",), now.get("free_slots", 0))
        yield slots
        for name, what in _COUNTS.items():
            yield CounterMetricFamily(f"mm01_engine_{name}", what, now.get(name, 0))
        for name, what in _PREFIX_COUNTS.items():
            yield CounterMetricFamily(f"mm01_prefix_{name}", what, prefix.get(name, 0))
        for name, what in _PREFIX_NOW.items():
            yield GaugeMetricFamily(f"mm01_prefix_{name}", what, prefix.get(name, 0))
        misses = CounterMetricFamily("mm01_prefix_misses", "prompts by why not more was remembered", labels=("reason",))
        for reason, count in prefix.get("misses", {}).items():
            misses.add_metric((reason,), count)
        yield misses
