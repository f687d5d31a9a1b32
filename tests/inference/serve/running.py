"""mm01-serve as a command with a checkpoint, and a client of few lines that tests ask it by."""

import http.client
import json
import os
import pathlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

CHAT_TINY = pathlib.Path(__file__).parents[2] / "fixtures" / "chat_tiny"  # made by benchmarks/train_chat.py
NAME = "tiny"


class Server:
    """A context: the command in a process. lines: what it says on stdout, as it comes; said: all of stderr.

    name: of the model; None leaves it to the checkpoint's folder. quick: programs that are compiled in less time, and
    give other bits than those of this process.
    """

    def __init__(self, *flags: str, name: str | None = NAME, quick: bool = True):
        named = [] if name is None else [f"--name={name}"]
        command = [sys.executable, "-m", "mm01_jax.inference.serve", "--port=0", *named, *flags]
        given = {"JAX_NUM_CPU_DEVICES": "1"}
        given |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"} if quick else {}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | given
        )
        self.lines: queue.SimpleQueue = queue.SimpleQueue()
        self.said: list[str] = []
        self._port = 0
        self._threads = [
            threading.Thread(target=self._read, args=(stream, put), daemon=True)
            for stream, put in ((self.process.stdout, self.lines.put), (self.process.stderr, self.said.append))
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def _read(self, stream, put) -> None:
        for line in stream:
            put(line)
        put("")

    def until(self, pattern: str) -> re.Match:
        """The first line from here on that matches."""
        while line := self.lines.get(timeout=240):
            if address := re.match(r"http://\S+:(\d+)/v1 serves", line):
                self._port = int(address[1])
            if found := re.search(pattern, line):
                return found
        raise AssertionError("".join(self.said))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=60)

    def request(self, path: str, body: dict[str, Any]) -> bytes:
        """A POST as it goes over the wire."""
        raw = json.dumps({"model": NAME} | body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n"
        return head.encode() + b"connection: close\r\n\r\n" + raw

    def _reply(self, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        raw = None if body is None else json.dumps({"model": NAME} | body).encode()
        connection.request("GET" if body is None else "POST", path, raw, {"content-type": "application/json"})
        reply = connection.getresponse()
        said = reply.read()
        connection.close()
        return reply.status, said

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        status, said = self._reply(path, body)
        return status, json.loads(said)

    def streamed(self, path: str, body: dict[str, Any]) -> str:
        """The text of a streamed answer of a conversation."""
        _, said = self._reply(path, body | {"stream": True})
        events = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: {")]
        assert said.rstrip().endswith(b"data: [DONE]")
        return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])

    def settle(self, slots: int, seconds: float = 30.0) -> None:
        """Until nothing is open and all slots are free; AssertionError where one stays taken."""
        end = time.monotonic() + seconds
        time.sleep(1.2)  # the engine says about every second what it has
        while True:
            state = self.ask("/state")[1]
            if not state["answers"] and state["engine"].get("free_slots") == slots:
                return
            assert time.monotonic() < end, state
            time.sleep(0.1)

    def pids(self) -> list[int]:
        """The command's process and its HTTP process."""
        ours = self.process.pid
        children = pathlib.Path(f"/proc/{ours}/task/{ours}/children").read_text().split()
        return [ours, *map(int, children)]
