"""The server's HTTP process with an engine of a few lines: what it says follows from what it is asked."""

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from mm01_jax.inference.serve import front
from mm01_jax.inference.serve.channel import Gone

CONTEXT, SLOTS, VOCAB = 4096, 8, 257
TOLD = {
    "name": "tiny",
    "created": 1,
    "context": CONTEXT,
    "vocab_size": VOCAB,
    "most": SLOTS,
    "slots": SLOTS,
    "device": "none",
    "prefix_bytes": 2**20,
    "logprobs": 5,
    "stop_id": 0xFE,
    "tokenizer": "bytes",
    "has_template": True,
    "template": "minimax-01",
    "folders": [],
    "vision": None,
    "images": None,
}
GOOD = {"model": "tiny", "prompt": "good", "max_tokens": 4}


class Engine:
    """Answers a prompt with its last tokens, one a message: so many as are wanted. One that ends in "wait" gets none.

    says: what it answers instead, a character a message. heard: every message. open: numbers of questions that were not
    finished or cancelled.
    """

    def __init__(self, channel):
        self.says: str | None = None
        self.heard: queue.SimpleQueue = queue.SimpleQueue()
        self.open: set[int] = set()
        self._channel = channel
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(Gone):
            while True:
                for message in self._channel.heard(0.2):
                    self.heard.put(message)
                    if "ask" in message:
                        self._answer(message)
                    self.open.discard(message.get("cancel"))

    def _answer(self, asked: dict[str, Any]) -> None:
        number, prompt = asked["ask"], asked["prompt"]
        self.open.add(number)
        if bytes(prompt[-4:]) == b"wait":
            return
        said = (prompt * asked["max_tokens"])[-asked["max_tokens"] :]
        pieces = [(chr(token), [token]) for token in said]
        if self.says is not None:
            pieces = [(character, [*character.encode()]) for character in self.says]
        finish = "length" if self.says is None else "stop"
        for which in range(asked["count"]):
            for place, (text, tokens) in enumerate(pieces):
                new = {"text": text, "tokens": tokens, "cached": 0}
                if asked.get("logprobs") is not None:
                    top = [[[token, -0.5]][: asked["logprobs"]] for token in tokens]
                    new |= {"logprobs": [-0.5] * len(tokens), "top": top}
                if place == len(pieces) - 1:
                    new |= {"finish": finish, "error": None}
                self._channel.say({"news": [[number, which, new]]})
        self.open.discard(number)

    def wait_until(self, fits, seconds: float = 20.0) -> None:
        """Until a message fits; AssertionError where none comes."""
        until = time.monotonic() + seconds
        while True:
            try:
                if fits(self.heard.get(timeout=max(0.01, until - time.monotonic()))):
                    return
            except queue.Empty:
                raise AssertionError("it was not said") from None


class Running:
    """A front that serves, and the engine behind it."""

    def __init__(self, made: front.Front, port: int, told: dict[str, Any]):
        made.ready(TOLD | told)
        self.front, self.port, self.engine = made, port, Engine(made.channel)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, what JSON says, headers) of a request: with a body, JSON or bytes as they are, a POST."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | {name.replace("_", "-"): it for name, it in headers.items()}
        connection.request("GET" if body is None else "POST", path, None if body is None else raw, headers)
        reply = connection.getresponse()
        said = reply.read()
        connection.close()
        return reply.status, json.loads(said), dict(reply.getheaders())

    def stream(self, path: str, body: Any) -> list[dict]:
        """What the events of a streamed answer say."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("POST", path, json.dumps(body | {"stream": True}), {"content-type": "application/json"})
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        said = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(one) for one in said if one != "[DONE]"]

    def raw(self, path: str, **headers: str) -> bytes:
        """What a GET gives."""
        return self._got(path, headers)[0]

    def headers(self, path: str) -> dict[str, str]:
        """The headers of what a GET gives."""
        return self._got(path, {})[1]

    def _got(self, path: str, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        said = reply.read()
        connection.close()
        return said, dict(reply.getheaders())

    def is_well(self) -> bool:
        """Whether a good request is answered right."""
        status, said, _ = self.ask("/v1/completions", GOOD)
        return (status, said["choices"][0]["text"]) == (200, "good")


@contextlib.contextmanager
def loading(keys=()) -> Iterator[tuple[front.Front, int]]:
    """A front whose engine is not ready, and its port."""
    listening = front.listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    with front.Front(listening, keys) as made:
        yield made, port


@contextlib.contextmanager
def running(keys=(), **told: Any) -> Iterator[Running]:
    with loading(keys) as (made, port):
        yield Running(made, port, told)


def request(path: str, body: Any) -> bytes:
    """A POST as it goes over the wire."""
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw
