"""Forked calls tell how they ended, and what they wrote where they should not."""

import os
import sys
import time

from tests.faults.forked import Server


def fine(path: str) -> None:
    print("said")
    with open(path, "w") as file:
        file.write("x")


def raises() -> None:
    raise KeyError("a bug")


def hangs() -> None:
    time.sleep(60)


def takes(mebibytes: str) -> int:
    held = bytearray(int(mebibytes) << 20)
    return len(held) and 3


def dies() -> None:
    os.abort()


def ends() -> None:
    sys.exit(2)


def test_a_call_says_how_it_ended(tmp_path):
    (tmp_path / "out").mkdir()
    with Server("json") as server:

        def call(function, *arguments, seconds=20.0):
            return server.call(f"tests.faults.test_forked:{function}", *arguments, room=tmp_path, seconds=seconds)

        good = call("fine", str(tmp_path / "out" / "a"))
        assert (good.code, good.said, good.outside, good.hung) == (0, "said\n", [], False)
        assert good.memory < 50 << 20
        assert call("fine", str(tmp_path / "a")).outside == [f"open {tmp_path.resolve() / 'a'}"]
        bug = call("raises")
        assert bug.code == 1 and "Traceback" in bug.complained and "KeyError" in bug.complained
        assert call("hangs", seconds=0.3).hung
        large = call("takes", "150")
        assert large.code == 3 and 150 << 20 <= large.memory < 250 << 20
        assert call("dies").code == -6 and call("ends").code == 2
