"""mm01-serve under bad requests, aborts, slow connections and mixed load: a few by default, all in the long suite."""

import http.client
import itertools
import os
import pathlib
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("llguidance")

from tests.inference.serve import (
    fronts,  # noqa: E402
    test_fields,  # noqa: E402
)
from tests.inference.serve import test_bad_requests as bad  # noqa: E402
from tests.inference.serve.running import CHAT_TINY, Server  # noqa: E402
from tests.slow import slow_but  # noqa: E402

SLOTS = 4
QUESTION = {"messages": [{"role": "user", "content": "What does math.sqrt do?"}], "temperature": 0}
BAD = [*bad.CASES, *test_fields.CASES]
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = (f"--slots={SLOTS}", "--context=1024", "--logprobs=5")  # no more than `bad.CASES` allow
    with Server(f"--checkpoint={CHAT_TINY}", "--template=minimax-01", *flags) as found:
        found.until(" serves ")
        yield found


@pytest.fixture(scope="module")
def right(server) -> str:
    """The answer to QUESTION; all later ones are the same."""
    status, said = server.ask(PATHS["chat"], QUESTION)
    assert status == 200 and said["choices"][0]["finish_reason"] == "stop"
    return said["choices"][0]["message"]["content"]


def is_right(server: Server, right: str) -> bool:
    status, said = server.ask(PATHS["chat"], QUESTION)
    return status == 200 and said["choices"][0]["message"]["content"] == right


@pytest.mark.parametrize("count", slow_but([3], [3, len(BAD)]))
def test_bad_requests_are_refused_by_their_field_and_a_good_one_behind_each_is_answered_right(server, right, count):
    cases = [case for case in BAD if not is_of_the_front(case[1])]
    for path, fields, named in random.Random(0).sample(cases, min(count, len(cases))):
        status, said = server.ask(path, bad.ALONE.get(path, {}) | fields)
        assert status == 400 and said["error"]["param"] == named, (path, fields, said)
        assert is_right(server, right)


def is_of_the_front(fields: dict) -> bool:
    """Whether it is wrong of the front of `fronts` alone, that lets few wait and has no ids beyond its bytes."""
    beyond = str(fronts.VOCAB) in str(fields) or fields.get("tokens") == [300]
    return beyond or fields.get("n") == 9 or fields.get("prompt") == ["a"] * 9


def leave(server: Server, number: int) -> None:
    """Asks for a long answer and leaves: before anything came, in the middle of a stream, with the connection reset."""
    body = {"prompt": "once", "max_tokens": 400, "stream": number % 3 == 1, "seed": number}
    with server.connect() as end:
        end.sendall(server.request(PATHS["completion"], body))
        if number % 3 == 1:
            assert b"data: " in end.recv(65536) + end.recv(65536)
        elif number % 3 == 2:
            time.sleep(0.02)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


@pytest.mark.parametrize("count", slow_but([3], [3, 1000]))
def test_clients_that_leave_in_three_ways_leak_no_slot(server, right, count):
    for start in range(0, count, 20):
        threads = [
            threading.Thread(target=leave, args=(server, number)) for number in range(start, min(start + 20, count))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    server.settle(SLOTS)
    assert is_right(server, right)


@pytest.mark.parametrize("count", slow_but([3], [3, 200]))
def test_slow_and_half_open_connections_delay_a_good_request_little(server, right, count):
    alone = min(seconds(server, right) for _ in range(5))
    raw = server.request(PATHS["chat"], QUESTION)
    cuts = (0, 10, len(raw) - len(raw.partition(b"\r\n\r\n")[2]) + 5)  # nothing, half a head, half a body
    ends = [server.connect() for _ in range(count)]
    for end, cut in zip(ends, itertools.cycle(cuts), strict=False):
        end.sendall(raw[:cut])
    beside = min(seconds(server, right) for _ in range(5))
    for end in ends:
        end.close()
    assert beside <= 2 * alone, (beside, alone)
    print(f"{count} connections: {1000 * beside:.0f} ms beside them, {1000 * alone:.0f} ms alone")


def seconds(server: Server, right: str) -> float:
    began = time.monotonic()
    assert is_right(server, right)
    return time.monotonic() - began


def mixed(server: Server, right: str, until: float, seed: int, wrong: list) -> None:
    """One client: good, streamed, wrong and left requests, as they come."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        kind = draw.choice(("good", "stream", "bad", "leave"))
        try:
            if kind == "good" and not is_right(server, right):
                wrong.append("another answer")
            elif kind == "stream" and server.streamed(PATHS["chat"], QUESTION) != right:
                wrong.append("another answer streamed")
            elif kind == "bad" and server.ask(PATHS["chat"], QUESTION | {"temperature": "hot"})[0] != 400:
                wrong.append("taken")
            elif kind == "leave":
                leave(server, draw.randrange(999))
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            wrong.append(repr(error))


def held(server: Server) -> tuple[int, int]:
    """(open descriptors, resident bytes) of the two processes."""
    pids = server.pids()
    pages = sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids), pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="counts what Linux shows of a process")
@pytest.mark.parametrize("duration", slow_but([4], [4, 600]))
def test_under_mixed_load_nothing_goes_wrong_and_nothing_grows(server, right, duration):
    wrong: list = []
    counts = []
    for share in (0.25, 0.75):  # what grows once, buffers and caches, has grown by then
        until = time.monotonic() + share * duration
        clients = [
            threading.Thread(target=mixed, args=(server, right, until, seed, wrong)) for seed in range(2 * SLOTS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        server.settle(SLOTS)
        counts.append(held(server))
    (descriptors, memory), (more_descriptors, more_memory) = counts
    print(f"{duration} s: descriptors {descriptors} -> {more_descriptors}, memory {memory:,} -> {more_memory:,} bytes")
    assert not wrong, wrong[:5]
    assert more_descriptors <= descriptors + 2 and more_memory <= memory + 32 * 2**20


def test_an_engine_that_is_killed_ends_open_answers_with_an_error_and_the_server_with_it(server, right):
    with server.connect() as end:
        end.sendall(server.request(PATHS["completion"], {"prompt": "once", "max_tokens": 900, "stream": True}))
        end.recv(65536)
        server.process.kill()
        said = b"".join(iter(lambda: end.recv(65536), b""))
    assert b"the engine has ended" in said
    deadline = time.monotonic() + 10
    while True:
        try:
            server.connect().close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < deadline, "it still listens"
        time.sleep(0.05)
