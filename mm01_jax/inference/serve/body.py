"""The JSON body of a request, read within bounds of size, depth and time."""

import asyncio
import itertools
import re
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request

from mm01_jax.inference.serve import fields
from mm01_jax.inference.serve.errors import Refused

MOST_BYTES = 8 * 2**20  # of a body: a million tokens of text take about five
MOST_WITH_IMAGES = 32 * 2**20  # of a server that takes images
MOST_NAMES = 200_000  # of fields: while an object of more is made nobody else is heard. A long conversation has as many
_NAME_ENDS, _ESCAPES = re.compile(rb'"[ \t\r\n]*+:'), 64  # a quote behind an odd number of \ is a text's own
_SHORT_BYTES = 2**16
_READ_TIMES = 8  # as much is read: a client that sends too much reads why, where it does not send for ever
SECONDS = 30.0


class ClientGone(Exception):
    """The client has left before its request was whole."""


async def read_json(request: Request, most: int = MOST_BYTES) -> Any:
    """
    Args:
      most: bytes.

    Raises:
      Refused: another type, too large, too slow, no JSON, not UTF-8, too deep, a number that is none.
      ClientGone: it has left.
    """
    kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if kind != "application/json":  # any page of a browser may send other types here, unasked
        message = f"content-type: got {kind[:100]}; allowed: application/json"
        raise Refused(message, "content-type", status=415)
    try:
        async with asyncio.timeout(SECONDS):
            raw = await _read(request, most)
    except TimeoutError:
        raise Refused(f"the body did not come within {SECONDS:g} s", status=408) from None
    try:
        # A long text takes seconds: others go on meanwhile.
        return fields.parsed(raw) if len(raw) < _SHORT_BYTES else await asyncio.to_thread(_parsed, raw)
    except ValueError as error:
        raise Refused(f"the body is no JSON: {error}") from None


def _parsed(raw: bytes) -> Any:
    if raw.count(b":") > MOST_NAMES and any(itertools.islice(_names(raw), MOST_NAMES, None)):
        raise Refused(f"the body has more than {MOST_NAMES:,} names of fields")
    return fields.parsed(raw)


def _names(raw: bytes) -> Iterator[bool]:
    """True for every name of a field in a JSON text."""
    for end in _NAME_ENDS.finditer(raw):
        before = raw[max(0, end.start() - _ESCAPES) : end.start()]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            yield True


async def _read(request: Request, most: int) -> bytes:
    raw, length = bytearray(), 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        length += len(part)
        if length <= most:
            raw += part
        if length > _READ_TIMES * most or not message.get("more_body", False):
            break
    if length > most:
        raise Refused(f"the body has {length:,} bytes; allowed: {most:,}", status=413)
    return bytes(raw)
