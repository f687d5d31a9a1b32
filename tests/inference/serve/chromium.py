"""A page in headless Chromium, driven over a pair of pipes: no library, no port, no file left behind."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_SECONDS = 60.0


def installed() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A context: a browser with one page open at `url`. asked: addresses of all that the page has requested."""

    def __init__(self, program: str, url: str, width: int = 1100, height: int = 760):
        self._profile = tempfile.TemporaryDirectory()
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # where Chromium looks for its pipes
        command = ["bash", "-c", shell, "-", program, *flags, f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._rest, self._session = itertools.count(1), b"", None
        self.asked: list[str] = []
        target = self._say("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._say("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for name in ("Page.enable", "Network.enable"):
            self._say(name)
        self._say("Page.navigate", url=url)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        """Asks it to end: killed, its other processes would still write where its files are deleted."""
        self._session = None
        with contextlib.suppress(BrokenPipeError):
            self._send("Browser.close", {})
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def value(self, expression: str) -> Any:
        """What a script's expression is; AssertionError where it throws."""
        said = self._say("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, expression: str, seconds: float = _SECONDS) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never: {expression}\n{self.value('document.body.innerText')}"
            time.sleep(0.1)

    def write(self, text: str) -> None:
        """As if typed where the focus is."""
        self._say("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self._say("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def picture(self, path: pathlib.Path) -> None:
        """A PNG of what is to be seen."""
        path.write_bytes(base64.b64decode(self._say("Page.captureScreenshot", format="png")["data"]))

    def _say(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._send(method, parameters)
        while (reply := self._heard()).get("id") != number:
            if reply.get("method") == "Network.requestWillBeSent":
                self.asked.append(reply["params"]["request"]["url"])
        assert "error" not in reply, reply["error"]
        return reply["result"]

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        """The number that its answer will have."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return number

    def _heard(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 65536)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
