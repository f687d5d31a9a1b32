"""The HTTP process, as the engine's process starts it, readies it, and ends it."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mm01_jax import job
from mm01_jax.inference.serve.channel import Channel, Gone

_BACKLOG = 2048
_END_SECONDS = 10.0  # that it has for ending by itself


class FrontGone(job.Gone):
    """The HTTP process has ended without having been told to."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError where it cannot."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)


class Front:
    """A context in which the HTTP process runs; until `ready` it says that the model is being loaded.

    keys: who may ask, as `keys.parse` has them; of none, anybody. host: the name of which `listening` is an address.
    """

    def __init__(self, listening: socket.socket, keys: Sequence[dict[str, Any]], host: str = "127.0.0.1"):
        ours, theirs = socket.socketpair()
        program = str(pathlib.Path(__file__).with_name("front_process.py"))
        ends = [listening.fileno(), theirs.fileno()]
        # A session of its own: what a terminal tells the command it shall hear from the command.
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", program, *map(str, ends), host],
            pass_fds=ends,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        listening.close()
        self.channel = Channel(ours)
        self.channel.say({"keys": list(keys)})

    def __enter__(self) -> "Front":
        return self

    def __exit__(self, *_) -> None:
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._process.kill()
        self._process.wait()

    def ready(self, told: dict[str, Any]) -> None:
        """Returns when it serves.

        Raises:
          FrontGone: it has ended.
        """
        self.channel.say({"ready": told})
        try:
            while not any("serving" in message for message in self.channel.heard(0.2, 1)):
                pass  # one at a time: what is asked at once is behind it
        except Gone:
            raise FrontGone("the HTTP process has ended; what it said stands above") from None
