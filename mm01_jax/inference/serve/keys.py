"""API keys: who may ask, and how much a minute.

A file has a key a line, behind it what it may have: `KEY requests=60 tokens=100000`, both a minute; without, as much as
comes. A line that begins with # is a remark. Limits are buckets: a key that was silent for a minute may have a whole
minute's at once, then as much as flows in.
"""

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from mm01_jax.inference.serve.errors import Refused

LIMITS = ("requests", "tokens")


def parse(text: str) -> list[dict[str, Any]]:
    """What a file of keys says: the SHA-256 of each key in hex, and its limits.

    Raises:
      ValueError: names the line, never the key.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            key, *words = line.split()
            digest = hashlib.sha256(key.encode()).hexdigest()
            if digest in found:
                raise ValueError(f"line {number}: got a key that stands above; allowed: each key once")
            found[digest] = {"digest": digest} | dict(_limit(number, word) for word in words)
    if not found:
        raise ValueError("got no key; allowed: a key a line, behind it requests=N and tokens=N of a minute")
    return list(found.values())


def _limit(number: int, word: str) -> tuple[str, int]:
    name, _, value = word.partition("=")
    if name not in LIMITS or not (value.isascii() and value.isdecimal() and len(value) <= 15) or int(value) < 1:
        allowed = "requests=N, tokens=N, whole numbers from 1, of 15 digits at most"
        raise ValueError(f"line {number}: got {ascii(word[:40])} behind a key; allowed: {allowed}")
    return name, int(value)


class Bucket:
    """So much a minute. One may take more than is there; then nobody takes before it is paid back."""

    def __init__(self, minute: float, clock: Callable[[], float] = time.monotonic):
        self._minute, self._clock = minute, clock
        self._left, self._then = minute, clock()

    def wait(self, wanted: float) -> float:
        """Seconds until so much is there, 0 where it is."""
        now = self._clock()
        self._left = min(self._minute, self._left + (now - self._then) * self._minute / 60)
        self._then = now
        return max(0.0, min(wanted, self._minute) - self._left) * 60 / self._minute

    def take(self, amount: float) -> None:
        self._left -= amount


class Key:
    """What a client may have; of one without limits, everything."""

    def __init__(self, said: dict[str, Any], clock: Callable[[], float] = time.monotonic):
        self.buckets = {name: Bucket(said[name], clock) for name in LIMITS if name in said}

    def check(self) -> None:
        """Counts a request.

        Raises:
          Refused: too many, or too many tokens before; says when to come again.
        """
        for name, bucket in self.buckets.items():
            if seconds := math.ceil(bucket.wait(1)):
                message = f"this key has had its {name} of a minute; again in {seconds} s"
                raise Refused(message, status=429, code="rate_limit_exceeded", retry=seconds)
        if "requests" in self.buckets:
            self.buckets["requests"].take(1)

    def spend(self, tokens: int) -> None:
        """Counts tokens of a prompt and its answers."""
        if "tokens" in self.buckets:
            self.buckets["tokens"].take(tokens)


_ANYBODY = Key({})


class Keys:
    """All keys that are known; of none, anybody may ask."""

    def __init__(self, said: Sequence[dict[str, Any]]):
        self._known = [(one["digest"], Key(one)) for one in said]

    def of(self, authorization: str) -> Key:
        """Whose key a header has; compared with every key in a time that says nothing of any.

        Raises:
          Refused: nobody's.
        """
        if not self._known:
            return _ANYBODY
        kind, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).hexdigest()  # bytes, as they came
        fitting = [known for digest, known in self._known if hmac.compare_digest(given, digest)]
        if not fitting or kind.lower() != "bearer":
            message = "authorization: got no key that is known here; allowed: Bearer KEY"
            raise Refused(message, "authorization", status=401, code="invalid_api_key")
        return fitting[0]
