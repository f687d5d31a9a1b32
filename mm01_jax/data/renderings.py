"""The process that a chat template runs in (`template_process.py`), and what all that it renders may take together."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

# Seconds of the processor: so many at most that are left, and what each conversation gives. On one core it takes 10 ms,
# 10 us a character of the template, and 0.3 us a byte where it has very many messages.
SECONDS = 2
_SHARE, _A_CHARACTER, _A_BYTE, _PUBLISHED = 0.1, 20e-6, 1e-6, 30_000  # characters of the longest published template
MEMORY, MEMORY_A_BYTE = 224 << 20, 64  # and so many of each byte of the conversation, its copies and its text
_WALL_SECONDS = 120.0  # of a machine that is busy with other things


class Refused(Exception):
    """What the process was ended for."""


class Renderings:
    """Those of one template: it cannot take the time of one conversation for each of very many."""

    def __init__(self):
        self._left: float = SECONDS

    def run(self, asked: dict[str, Any]) -> list[dict[str, str]]:
        """{"text": ...} or {"error": ...} of each of the `calls` for one conversation, as `template_process.py` has it.

        Raises:
          Refused: it took too much.
        """
        size = len(json.dumps(asked["calls"]))
        share = _SHARE + _A_CHARACTER * min(len(asked["template"]), _PUBLISHED) + _A_BYTE * size
        seconds = min(SECONDS, self._left + share)
        bounds = {"seconds": seconds, "bytes": MEMORY + MEMORY_A_BYTE * size}
        code, answered = _process(json.dumps(asked | bounds).encode())
        found = json.loads(answered) if code == 0 else {"seconds": seconds}
        self._left = max(0.0, seconds - found["seconds"])
        if code in (-signal.SIGPROF, -signal.SIGKILL):
            raise Refused(f"it takes more than {SECONDS} s, or than {share:.2f} s of each of many conversations")
        if code:
            raise Refused(f"out of memory, or ended ({code})")
        return found["calls"]


def _process(asked: bytes) -> tuple[int, bytes]:
    """Its exit code and what it says."""
    shell = [sys.executable, "-s", "-P", str(pathlib.Path(__file__).with_name("template_process.py"))]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # and nothing of ours beside
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
        stdin.write(asked)
        stdin.seek(0)
        pipes = {"stdin": stdin, "stdout": stdout, "stderr": subprocess.DEVNULL, "env": environment}
        try:
            code = subprocess.run(shell, timeout=_WALL_SECONDS, check=False, **pipes).returncode
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        stdout.seek(0)
        return code, stdout.read()
