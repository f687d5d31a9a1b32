"""The HTTP process of the server: a program of its own, which imports no jax (`front.py` starts it).

Its arguments are two open descriptors, the socket that listens and its end of the channel, and what was typed for the
first's host. It says nothing can be had
until the engine's process says "ready", finishes what is open when that says "drain", and ends with it.
"""

import asyncio
import contextlib
import gc
import json
import signal
import socket
import sys

import h11
import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mm01_jax.inference.serve.app import App, log
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.hosts import is_loopback
from mm01_jax.inference.serve.link import Link
from mm01_jax.inference.serve.replies import refusal
from mm01_jax.inference.serve.service import Service, shutting_down

_HEADER_BYTES = 64 * 2**10
_HEADER_SECONDS = 20.0  # also between two requests: clients that keep connections let go of them after 5 to 15
_LEAVE_SECONDS = 2.0  # for answers that are written already


class Protocol(H11Protocol):
    """Closes a connection whose next request does not come, or not as far as its body."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._waits = self.loop.call_later(_HEADER_SECONDS, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answers:
            self._stop_waiting()
        elif self._waits is None:
            self._waits = self.loop.call_later(_HEADER_SECONDS, self._late)

    def send_400_response(self, msg: str) -> None:
        """In the form of all else that is refused, where the connection can still be told."""
        body = json.dumps(Refused("this is no request of HTTP, or its head does not end within 64 KiB").body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def connection_lost(self, exc) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _late(self) -> None:
        self._waits = None
        if not self._answers:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None


class Server(uvicorn.Server):
    """Signals are the engine's: it says when to end."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


def until_cut(app: ASGIApp) -> ASGIApp:
    """`app`, whose requests that are not answered when the server ends, as those that are not whole, are refused."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        said = []

        async def noted(message: Message) -> None:
            said.append(message["type"])
            await send(message)

        try:
            await app(scope, receive, noted)
        except asyncio.CancelledError:  # of uvicorn; what is half sent it closes
            if not said:
                log(Request(scope), 503)
                await refusal(shutting_down())(scope, receive, send)

    return answered


async def serve(listening: socket.socket, end: socket.socket, host: str) -> None:
    link = Link(*await asyncio.open_connection(sock=end))
    told = asyncio.ensure_future(link.listen())
    keys = await link.keys
    app = App(link, keys, host if not keys and is_loopback(listening.getsockname()[0]) else None)
    config = uvicorn.Config(
        until_cut(app.asgi),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # what is no HTTP is refused, and that is all there is to say of it
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_HEADER_SECONDS,
        timeout_graceful_shutdown=_LEAVE_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    server = Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    await asyncio.wait({told, link.ready, serving}, return_when=asyncio.FIRST_COMPLETED)
    if link.ready.done():
        app.service = await asyncio.to_thread(Service, link.ready.result(), link)
        gc.freeze()  # as in `engine_loop.py`
        link.serving()
        draining = asyncio.ensure_future(_drained(link))
        await asyncio.wait({told, draining, serving}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    await link.close()


async def _drained(link: Link) -> None:
    """Returns when a signal has come and nothing is open."""
    await link.draining.wait()
    while link.open:
        await asyncio.sleep(0.02)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # where the system has one: a connection is a descriptor

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listening, end = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    asyncio.run(serve(listening, end, sys.argv[3]))


if __name__ == "__main__":
    main()
