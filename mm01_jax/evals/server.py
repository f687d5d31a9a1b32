"""Samples through any server of OpenAI's /v1/completions: the same prompts, as token ids, and the same answers.

What prompts share is sent first and by itself, so that a server that remembers prompts takes it in once.
"""

import collections
import concurrent.futures
import http.client
import json
import time
import types
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from mm01_jax.arguments import refused
from mm01_jax.config.fields import nearest_name
from mm01_jax.evals.group import Group
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.run import Answered
from mm01_jax.evals.sample import Sample
from mm01_jax.files import Door, parse_json, shown

FILES = Door(ValueError)
TRIES = 6  # of a request that the server is too busy for, or whose connection ends
_BUSY = (429, 502, 503, 504)
_PATIENCE = 3600.0  # seconds for an answer: of a million tokens it takes long
_GREETING = 30.0  # for its list of models
_MOST_BYTES = 2**24  # of an answer


class ServerError(Exception):
    """The server is not there, or does not answer as the API says."""

    exit_code = 69


class Server:
    """A server and the model of it that is asked, `slots` answers at a time.

    Args:
      url: as clients have it, http://HOST:PORT/v1. model: its name there; None: the only one. key: of the API.

    Raises:
      ConfigError: the URL is none, or the server has no such model. ServerError: it does not answer.
    """

    def __init__(self, url: str, model: str | None, key: str | None, slots: int):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or _port_of(parts) is None:
            raise refused("--server", shown(url), "a URL as clients have it", "--server=http://127.0.0.1:8000/v1")
        self._parts, self._slots, self.prefilled = parts, slots, 0
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self.model = self._chosen(model)

    def answers(self, prompts: Prompts, groups: Iterable[Group], skipped: int = 0) -> Iterator[Answered]:
        """Every answer in order, but for the first `skipped`."""
        with concurrent.futures.ThreadPoolExecutor(self._slots) as pool:
            for group in groups:
                if skipped >= group.count:
                    skipped -= group.count
                    continue
                if group.begins is not None and len(began := prompts.begun(group.begins)):
                    self.prefilled += len(began) - self._answer(prompts, began.tolist(), 1)[2]
                yield from self._answered(pool, prompts, group, skipped)
                skipped = 0

    def _answered(self, pool, prompts: Prompts, group: Group, skipped: int) -> Iterator[Answered]:
        waiting: collections.deque[tuple[Sample, int, concurrent.futures.Future]] = collections.deque()
        try:
            for number, sample in enumerate(group.samples):
                if number < skipped:
                    continue
                ids = prompts.ids(sample).tolist()
                waiting.append((sample, len(ids), pool.submit(self._answer, prompts, ids, sample.max_tokens)))
                while len(waiting) > 2 * self._slots:
                    yield self._read(*waiting.popleft())
            while waiting:
                yield self._read(*waiting.popleft())
        finally:
            for _, _, future in waiting:
                future.cancel()

    def _answer(self, prompts: Prompts, ids: list[int], max_tokens: int) -> tuple[str, str, int]:
        """(an answer, why it ended, tokens of the prompt that the server had taken in before)."""
        body = {"model": self.model, "prompt": ids, "max_tokens": max_tokens, "temperature": 0}
        if len(prompts.ends) > 1:  # more than the end of a document, which every server knows
            body["stop_token_ids"] = list(prompts.ends)
        said = self._ask("POST", "/completions", body)
        try:
            text, finish = said["choices"][0]["text"], said["choices"][0].get("finish_reason") or "stop"
            usage = said.get("usage") or {}
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            counted = usage.get("prompt_tokens", len(ids))
            whole = isinstance(text, str) and isinstance(finish, str) and isinstance(cached, int)
        except (KeyError, IndexError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ServerError(f"{self._name}/completions: its answer has not the form of OpenAI's API: {_few(said)}")
        if counted != len(ids):
            got = f"it counts {counted!r} tokens in a prompt of {len(ids):,}"
            raise ServerError(f"{self._name}/completions: {got}: it does not take token ids as they are")
        return text, finish, cached

    def _read(self, sample: Sample, tokens: int, future: concurrent.futures.Future) -> Answered:
        text, finish, cached = future.result()
        self.prefilled += tokens - cached
        return Answered(sample, text, finish, tokens, cached)

    def _chosen(self, model: str | None) -> str:
        said = self._ask("GET", "/models")
        listed = said.get("data") if isinstance(said, dict) else None
        names = [one.get("id") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        names = [name for name in names if isinstance(name, str)]
        if not names:
            raise ServerError(f"{self._name}/models: it lists no model: {_few(said)}")
        if model is None and len(names) != 1:
            allowed = f"one of the server's: {shown(', '.join(names))}"
            raise refused("--model", "nothing", allowed, shown(f"--model={names[0]}"))
        if model is not None and model not in names:
            near = nearest_name(model, names)
            raise refused("--model", shown(model), f"one of {shown(', '.join(names))}", near and shown(near))
        return model or names[0]

    @property
    def _name(self) -> str:
        return shown(self._parts.geturl().rstrip("/"))

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """What the server says, as JSON; where it is busy, or a connection ends, again."""
        raw = None if body is None else json.dumps(body).encode()
        for number in range(TRIES):
            last, wait = number == TRIES - 1, min(2.0**number / 4, 8.0)
            try:
                status, told, said = self._sent(method, self._parts.path.rstrip("/") + path, raw)
            except (OSError, http.client.HTTPException) as error:
                if last or isinstance(error, ConnectionRefusedError | TimeoutError):
                    raise ServerError(f"{self._name}: no answer: {shown(str(error) or type(error).__name__)}") from None
            else:
                if status == 200:
                    return self._json(path, said)
                if last or status not in _BUSY:
                    raise ServerError(f"{self._name}{path}: {status}: {_few(said)}")
                wait = min(float(told), 60.0) if told is not None and told.isdecimal() else wait
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _sent(self, method: str, path: str, raw: bytes | None) -> tuple[int, str | None, bytes]:
        """(status, how long to wait before the next try, body)."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        patience = _GREETING if raw is None else _PATIENCE
        connection = kind(self._parts.hostname, _port_of(self._parts), timeout=patience)
        try:
            connection.request(method, path, raw, self._headers)
            answer = connection.getresponse()
            said = answer.read(_MOST_BYTES + 1)
            if len(said) > _MOST_BYTES:
                raise ServerError(f"{self._name}: an answer of more than {_MOST_BYTES:,} bytes")
            return answer.status, answer.getheader("retry-after"), said
        finally:
            connection.close()

    def _json(self, path: str, said: bytes) -> Any:
        try:
            return parse_json(said)
        except ValueError:
            raise ServerError(f"{self._name}{path}: what it says is no JSON: {_few(said)}") from None


def check_flags(given: types.SimpleNamespace) -> None:
    """ConfigError where a flag says what --server leaves no place for, or says something of none."""
    names = ("write", "mesh", "dtype", "quantize") if given.server is not None else ("model", "api_key_file")
    allowed = "without --server, whose weights are its own" if given.server is not None else "with --server alone"
    for name in names:
        if (got := getattr(given, name)) is not None:
            raise refused(f"--{name.replace('_', '-')}", shown(got), allowed, None)


def key_in(path: str | None) -> str | None:
    """The API key in a file, its first line; None without a file."""
    if path is None:
        return None
    lines = FILES.text(path, most=2**16).split()
    if not lines or not (lines[0].isascii() and lines[0].isprintable()):
        raise ValueError(f"--api-key-file={path}: no key in it; allowed: a file whose first line is a key")
    return lines[0]


def _port_of(parts: urllib.parse.SplitResult) -> int | None:
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # of a number that no port has
        return None


def _few(said: Any) -> str:
    """The beginning of what a server said, and of an error its message alone."""
    try:
        said = parse_json(said) if isinstance(said, bytes) else said
        said = said["error"]["message"]
    except (ValueError, KeyError, TypeError):
        pass
    return shown(said.decode(errors="replace") if isinstance(said, bytes) else str(said))
