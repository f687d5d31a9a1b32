"""The HTTP process beside its engine: clients that leave or read slowly, a full queue, and how both processes end."""

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from mm01_jax.inference.serve import __main__ as command  # noqa: E402
from mm01_jax.inference.serve.engine_loop import EngineLoop  # noqa: E402
from mm01_jax.inference.serve.front import FrontGone  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402

COMPLETION = "/v1/completions"
WAITS = {"model": "tiny", "prompt": "please wait", "max_tokens": 4}


@pytest.fixture(scope="module")
def running():
    with fronts.running() as found:
        yield found


def leave(end: socket.socket, way: int) -> None:
    """Three ways: a close, a reset, no more to say."""
    if way == 1:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if way == 2:
        end.shutdown(socket.SHUT_WR)
    end.close()


def test_a_client_that_leaves_in_any_way_frees_its_slot(running):
    for count in range(60):
        body = WAITS | {"stream": count % 2 == 0, "n": 1 + count % 4}
        end = running.connect()
        end.sendall(fronts.request(COMPLETION, body))
        running.engine.wait_until(lambda message: "ask" in message)
        leave(end, count % 3)
        running.engine.wait_until(lambda message: "cancel" in message)
    assert not running.engine.open
    assert running.is_well()  # and the queue knows, too: 60 of them are more than it takes


def test_a_full_queue_says_when_to_come_again(running):
    ends = [running.connect() for _ in range(fronts.SLOTS // 2)]
    for end in ends:
        end.sendall(fronts.request(COMPLETION, WAITS | {"n": 2}))
        running.engine.wait_until(lambda message: "ask" in message)
    status, said, headers = running.ask(COMPLETION, fronts.GOOD)
    assert status == 429 and said["error"]["code"] == "queue_full" and int(headers["retry-after"]) >= 1
    for end in ends:
        end.close()
        running.engine.wait_until(lambda message: "cancel" in message)
    assert running.is_well()


def test_who_reads_slowly_gets_several_tokens_at_a_time_and_all_of_them(running):
    body = {"model": "tiny", "prompt": "abcdefgh" * 8, "max_tokens": 2000, "stream": True, "n": 4}
    with running.connect() as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end.sendall(fronts.request(COMPLETION, body))
        running.engine.wait_until(lambda message: "ask" in message)
        time.sleep(0.5)  # while all of the engine's pieces come
        said = [json.loads(line) for line in _events(end) if line != b"[DONE]"]
    texts = dict.fromkeys(range(4), "")
    for event in said:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert {len(text) for text in texts.values()} == {2000}
    assert len(said) < 4 * 2000


def _events(end: socket.socket) -> list[bytes]:
    """What stands behind every `data: ` up to the last."""
    raw = b""
    while b"[DONE]" not in raw and (part := end.recv(65536)):
        raw += part
    return re.findall(rb"^data: (.*)$", _unchunked(raw.partition(b"\r\n\r\n")[2]), re.MULTILINE)


def _unchunked(raw: bytes) -> bytes:
    """The body of an answer whose length was not known."""
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    return body


def test_a_signal_lets_open_answers_finish_and_nothing_new_begin():
    with fronts.running() as running:
        with running.connect() as end:
            end.sendall(fronts.request(COMPLETION, WAITS))
            running.engine.wait_until(lambda message: "ask" in message)
            running.front.channel.say({"drain": True})
            deadline = time.monotonic() + 10
            while running.ask("/health")[1]["status"] != "draining" and time.monotonic() < deadline:
                time.sleep(0.02)
            assert running.ask("/health")[0] == 503
            status, said, headers = running.ask(COMPLETION, fronts.GOOD)
            assert (status, said["error"]["code"]) == (503, "shutting_down") and "retry-after" in headers
            (number,) = running.engine.open
            new = {"text": "done", "tokens": [1], "cached": 0, "finish": "stop", "error": None}
            running.front.channel.say({"news": [[number, 0, new]]})
            assert b'"text":"done"' in end.makefile("rb").read()
        running.engine.wait_until(lambda message: "done" in message)


def test_a_request_that_is_not_whole_when_the_server_ends_is_refused_in_the_form_of_all(capfd):
    with fronts.running() as running, running.connect() as end:
        end.sendall(fronts.request(COMPLETION, fronts.GOOD)[:-5])
        time.sleep(0.5)  # until it is read
        running.front.channel.say({"drain": True})
        head, _, body = end.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and json.loads(body)["error"]["code"] == "shutting_down"
        running.engine.wait_until(lambda message: "done" in message)
    log = capfd.readouterr().err
    assert "POST /v1/completions 503" in log and "Traceback" not in log


@pytest.mark.slow
def test_a_connection_is_kept_for_longer_than_clients_keep_theirs(running):
    """One that the server closes first is asked once more by a client that has not heard of it yet."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    for pause in (0, 16):
        time.sleep(pause)
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
    connection.close()


def test_a_front_without_its_engine_answers_what_is_open_and_ends():
    with fronts.running() as running, running.connect() as whole, running.connect() as streamed:
        for end, body in ((whole, WAITS), (streamed, WAITS | {"stream": True})):
            end.sendall(fronts.request(COMPLETION, body))
            running.engine.wait_until(lambda message: "ask" in message)
        running.front.channel.close()
        assert b"the engine has ended" in whole.makefile("rb").read()
        assert b"the engine has ended" in streamed.makefile("rb").read()
        assert running.front._process.wait(10) == 0


class Idle:
    """An engine that nobody has asked."""

    idle = True

    def statistics(self) -> dict:
        return {}


def test_an_engine_without_its_front_says_so_and_ends():
    with fronts.running() as running:
        os.kill(running.front._process.pid, signal.SIGKILL)
        with pytest.raises(FrontGone, match="the HTTP process has ended"):
            EngineLoop(Idle(), running.front.channel, grammars=None).run()


# The thread beside the main one gets to a signal only after the server has dealt with it, and draining takes long.
DRAINS = """
import os, select, signal, sys, threading, time
from mm01_jax import command, signals
from mm01_jax.inference.serve.engine_loop import EngineLoop
signals.SECONDS = 0.3
at_once = select.select
signals.select.select = lambda *given: (at_once(*given), time.sleep(0.2))[0]
class Stand:
    idle, said = True, 0
    def say(self, message):
        self.said += "drain" in message
    def statistics(self):
        return {}
    def heard(self, seconds):
        time.sleep(0.2)
        return [{"done": True}] if time.monotonic() > until else []
def serve(argv):
    stand = Stand()
    loop = EngineLoop(stand, stand, None)
    with loop.draining():
        for seconds in map(float, sys.argv[2:]):
            threading.Timer(seconds, os.kill, (os.getpid(), int(sys.argv[1]))).start()
        loop.run()
    print("drained", stand.said)
until = time.monotonic() + 2
sys.exit(command.run(serve))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_drains_whenever_it_is_noticed_and_a_second_one_ends(number):
    def ended(*seconds: str) -> tuple[int, str]:
        command = [sys.executable, "-c", DRAINS, str(int(number)), *seconds]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout

    assert ended("0.1") == (0, "drained 1\n")
    assert ended("0.1", "0.7") == (128 + number, "")


def test_a_signal_drains_from_the_moment_on_at_which_a_client_can_know_that_it_serves(tmp_path, monkeypatch, capsys):
    def too_early(*_):
        raise AssertionError("no handler of the server's")

    before = signal.signal(signal.SIGTERM, too_early)
    monkeypatch.setattr(command, "_engine", lambda given: (Idle(), None, fronts.TOLD))
    monkeypatch.setattr(command, "_say_how_to_ask", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        command._serve([f"--checkpoint={tmp_path}", "--port=0"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "all answers are given" in capsys.readouterr().out


def test_a_field_that_is_null_is_none_whatever_its_name(running):
    """As a client's library sends back the message that it was sent."""
    back = {"role": "assistant", "content": "y", "audio": None, "function_call": None}
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}, back, {"role": "user", "content": "z"}]}
    status, said, _ = running.ask("/v1/chat/completions", asked | {"prediction": None})
    assert status == 200, said
    assert running.ask(COMPLETION, fronts.GOOD | {"stop_token_ids": [], "audio": None})[0] == 200


def test_the_log_says_nothing_of_what_was_said(capfd):
    conversation = {"model": "tiny", "messages": [{"role": "user", "content": "a secret"}] * 2}
    with fronts.running() as running:
        running.ask(COMPLETION, fronts.GOOD | {"prompt": "a secret"})
        running.ask(COMPLETION, fronts.GOOD | {"prompt": 3, "user": "a secret"})
        running.ask("/v1/chat/completions", conversation)
    out, err = capfd.readouterr()
    assert "secret" not in out + err
    assert "POST /v1/completions 200 8+4 tokens" in err and "POST /v1/completions 400" in err
