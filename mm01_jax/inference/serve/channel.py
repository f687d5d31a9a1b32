"""Messages between the two processes: JSON behind its length, over a pair of sockets.

The engine's side writes in a thread, so that no step waits for a reader.
"""

import asyncio
import contextlib
import json
import queue
import socket
import struct
import threading
from typing import Any

_LENGTH = struct.Struct("!Q")


def packed(message: Any) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message; asyncio.IncompleteReadError where the other side has gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return json.loads(await reader.readexactly(length))


class Gone(Exception):
    """The other side has closed."""


class Channel:
    """The engine's end."""

    def __init__(self, end: socket.socket):
        self._end = end
        self._came: queue.SimpleQueue = queue.SimpleQueue()
        self._said: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    def say(self, message: Any) -> None:
        """Never waits; may be called by a handler of a signal."""
        self._said.put(message)

    def heard(self, seconds: float, most: int | None = None) -> list[Any]:
        """What came since the last call, in order, at most so many; of nothing, what comes within so many seconds.

        Raises:
          Gone: the other side has closed, and all it said was heard.
        """
        messages = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._came.get(block=seconds > 0, timeout=seconds or None))
            while len(messages) != most:
                messages.append(self._came.get_nowait())
        if messages and messages[-1] is Gone:
            messages.pop()
            self._came.put(Gone)
            if not messages:
                raise Gone
        return messages

    def close(self) -> None:
        """When what was said is written."""
        self._said.put(Gone)
        self._threads[1].join()
        self._end.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._end.makefile("rb") as file:
            while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
                (length,) = _LENGTH.unpack(head)
                if len(data := file.read(length)) < length:
                    break
                self._came.put(json.loads(data))
        self._came.put(Gone)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._said.get()) is not Gone:
                self._end.sendall(packed(message))
            self._end.shutdown(socket.SHUT_WR)
