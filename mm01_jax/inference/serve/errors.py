"""What a client did wrong, in the form that OpenAI's API gives it."""

from collections.abc import Mapping

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_SECONDS = 1


class Refused(Exception):
    """A request that is not answered.

    param: the field, as a client writes it: `messages[2].content`. code: a word for programs. retry: after how
    many seconds to ask again, of 429 and 503.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        retry: int = RETRY_SECONDS,
    ):
        super().__init__(_sayable(message))
        param = None if param is None else _sayable(param)
        self.param, self.status, self.code, self._retry = param, status, code, retry

    @property
    def body(self) -> dict:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": str(self._retry)} if self.status in (429, 503) else {}


def wrong(name: str, got: object, allowed: str, code: str | None = None) -> Refused:
    """The error of a field: what was got, in a few words, and what is allowed."""
    return Refused(f"{name}: got {_said(got)}; allowed: {allowed}", name, code=code)


def _said(value: object) -> str:
    """A value in a message: its kind where it is long or not one value."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, str):
        return f"a text of {len(value):,} characters" if len(value) > 40 else ascii(value)
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _sayable(text: str) -> str:
    """With half surrogate pairs, which a client's own name of a field may have and UTF-8 has not, written out."""
    return text.encode("utf-8", "backslashreplace").decode()
