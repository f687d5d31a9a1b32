"""The page at `/`: one file that asks this server alone, and what it shows of the engine."""

import base64
import hashlib
import pathlib
import re
from typing import Any

from starlette.responses import HTMLResponse, Response

from mm01_jax.inference.serve.link import Link
from mm01_jax.inference.serve.service import Service

_MOST_SHOWN = 1024  # answers


def _policy(html: str) -> str:
    """What a browser allows the page: its own script and style, as they are written here, and questions to here."""
    hashes = {}
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


_HTML = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
_HEADERS = {"content-security-policy": _policy(_HTML), "x-content-type-options": "nosniff", "cache-control": "no-cache"}


def page() -> Response:
    return HTMLResponse(_HTML, headers=_HEADERS)


def state(service: Service, link: Link, status: str) -> dict[str, Any]:
    """What runs, what waits and what is remembered: numbers alone. answers: those that have begun first."""
    answers = sorted(link.answers, key=lambda answer: answer.last is None)[:_MOST_SHOWN]
    return {
        "model": service.name,
        "status": status,
        "device": service.device,
        "context": service.context,
        "slots": service.slots,
        "queue": service.most - service.slots,
        "prefix_bytes": service.prefix_bytes,
        "answers": [{"prompt": len(one.prompt), "cached": one.cached, "said": one.count} for one in answers],
        "engine": link.told,
    }
