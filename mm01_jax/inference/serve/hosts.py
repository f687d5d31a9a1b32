"""By which names a server is asked that anybody of this machine may ask.

A page of another site can have its own name lead to this machine (DNS rebinding); to a browser this server is then that
site, and the page may ask and read. A browser says in `Host` by which name it came: that site's is refused.
"""

import ipaddress

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.replies import refusal


class OwnHosts:
    """Refuses requests that came by a name which leads here for somebody else's sake. host: of `--host`."""

    def __init__(self, app: ASGIApp, host: str, log):
        self._app, self._host, self._log = app, host.lower(), log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        name = _name(request.headers.get("host", ""))
        if name in ("", "localhost", self._host) or name.endswith(".localhost") or is_address(name):
            return await self._app(scope, receive, send)
        message = (
            f"host: got {ascii(name[:100])}; allowed without a key: localhost, an address, {self._host!r} (--host)"
        )
        self._log(request, 403)
        return await refusal(Refused(message, "host", status=403, code="host_not_allowed"))(scope, receive, send)


def _name(host: str) -> str:
    """Of `name`, `name:port` or `[address]:port` the name."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def is_address(name: str) -> bool:
    """Whether it is a number, which no other site can make lead here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return is_address(address) and ipaddress.ip_address(address).is_loopback
