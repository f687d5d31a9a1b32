"""Of several processes one dies, stalls or ends: what the other does, which waits in C, where no exception comes."""

import signal
import subprocess

import pytest

from tests.parallel.test_processes import launch
from tests.slow import slow_but

WAITS = """
import ctypes, os, sys
from mm01_jax import cluster, command

def main(argv):
    cluster.join()
    import jax
    print("joined", flush=True)
    what, seconds = argv[jax.process_index()].split("=")
    libc = ctypes.PyDLL(None) if what == "lock" else ctypes.CDLL(None)  # with its lock, or without
    libc.sleep(int(seconds))
    if what == "abort":
        os.abort()
    if what == "raise":
        raise ValueError("typed wrong")

sys.exit(command.run(main, name="mm01-test"))
"""
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
LONG = "wait=100"
FATES = {  # what each does; who gets which signal; exit codes; whose death the other says
    "the first is killed": ((LONG, LONG), 0, KILL, (-KILL, 69), 0),
    "the second is killed": ((LONG, LONG), 1, KILL, (69, -KILL), 1),
    "the second of three is killed": ((LONG, LONG, LONG), 1, KILL, (69, -KILL, 69), 1),
    "the first stalls": ((LONG, LONG), 0, STOP, (None, 69), 0),
    "the second stalls": ((LONG, LONG), 1, STOP, (69, None), 1),
    "the first is wrong": (("raise=2", LONG), 0, None, (2, 69), 0),
    "the second is wrong": ((LONG, "raise=2"), 1, None, (69, 2), 1),
    "both are wrong": (("raise=3", "raise=2"), 0, None, (2, 2), None),
    "the second aborts": ((LONG, "abort=1"), 1, None, (69, -signal.SIGABRT), 1),
    "the first ends before the second": (("wait=0", "wait=25"), 0, None, (0, 0), None),
    "the second ends before the first": (("wait=25", "wait=0"), 0, None, (0, 0), None),
    "the second is busy": (("wait=20", "lock=15"), 0, None, (0, 0), None),
}


@pytest.mark.parametrize("fate", slow_but(("the first is killed",), FATES))
def test_the_others_end_with_69_and_its_name_where_one_of_several_dies_or_stalls(fate):
    does, who, number, codes, dead = FATES[fate]
    running = launch(["-c", WAITS, *does], len(does), devices=len(does))
    try:
        for process in running:
            while "joined" not in process.stdout.readline():
                assert process.poll() is None
        if number:
            running[who].send_signal(number)
        said = [process.communicate(timeout=60)[0] for process, code in zip(running, codes, strict=True) if code]
        for process, code in zip(running, codes, strict=True):
            if code is not None:
                process.wait(timeout=60)
        assert tuple(process.poll() for process in running) == codes, said
    except subprocess.TimeoutExpired:
        pytest.fail(f"{[process.poll() for process in running]} after a minute")
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
    others = [text for text, code in zip(said, filter(None, codes), strict=True) if code == 69]
    line = f"mm01-test: process {dead} of this job has died or left ("
    assert all(text.splitlines()[-1].startswith(line) and text.count("of this job") == 1 for text in others)
