"""Samples asked of a server of OpenAI's API: the prompts of the in-process route, its answers, and what goes wrong."""

import contextlib
import dataclasses
import http.server
import json
import os
import pathlib
import socket
import threading
import time
import types

import jax
import pytest

from mm01_jax.config import ConfigError
from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.evals import __main__ as evals
from mm01_jax.evals import report, server, tasks
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.prompts import Prompts
from mm01_jax.train import loop

GIVEN = {"lengths": "700,900", "depths": 3, "samples": 1, "seed": 5, "template": "base", "bos": None}


class Oracle(http.server.BaseHTTPRequestHandler):
    """Knows the answer of every prompt; busy at first; counts what it is asked."""

    def do_GET(self):
        self._say(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, self.headers["authorization"], body))
        if len(self.server.asked) == 2:
            self._say(503, {"error": {"message": "busy"}})
            return
        prompt = body["prompt"]
        text = self.server.texts.get(bytes(prompt), "")
        usage = {"prompt_tokens": len(prompt) + self.server.more, "prompt_tokens_details": {"cached_tokens": 5}}
        self._say(200, {"choices": [{"text": text}], "usage": usage})

    def _say(self, status: int, body: dict) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def oracle(texts: dict[bytes, str], models=("tiny",), more: int = 0):
    """A server of the oracle, and its URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Oracle) as found:
        found.texts, found.models, found.more, found.asked = texts, models, more, []
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found, f"http://127.0.0.1:{found.server_port}/v1"
        finally:
            found.shutdown()
            thread.join()


@pytest.mark.parametrize("task", ["needles", "copy"])
def test_a_server_gets_the_prompts_of_the_in_process_route_and_its_answers_come_in_order(task):
    prompts = Prompts(Pieces(BytesTokenizer()))
    groups = list(tasks.read(task, types.SimpleNamespace(**GIVEN)).make(prompts))
    samples = [sample for group in groups for sample in group.samples]
    texts = {bytes(prompts.ids(sample).tolist()): f" {sample.answers[0]}" for sample in samples}
    with oracle(texts) as (there, url):
        found = server.Server(url, None, "key", 2)
        answers = list(found.answers(prompts, groups))
        first = there.asked[0]
        last = list(server.Server(url, "tiny", None, 2).answers(prompts, groups, len(samples) - 1))
    assert [one.sample for one in answers] == samples and len(last) == 1 and last[0] == answers[-1]
    assert all(report.record_of(one)["score"] == 1.0 for one in answers)
    assert bytes(first[2]["prompt"]) == bytes(prompts.begun(groups[0].begins).tolist())
    assert first[:2] == ("/v1/completions", "Bearer key") and first[2]["temperature"] == 0
    asked = sum(len(prompts.ids(sample)) for sample in samples) + sum(len(prompts.begun(g.begins)) for g in groups)
    assert found.prefilled == asked - 5 * (len(samples) + len(groups))
    assert all("stop_token_ids" not in body for _, _, body in there.asked)


def test_a_conversation_names_the_token_that_ends_a_turn():
    prompts = Prompts(Pieces(BytesTokenizer()), "chat")
    groups = list(tasks.read("copy", types.SimpleNamespace(**{**GIVEN, "lengths": "900"})).make(prompts))
    with oracle({}) as (there, url):
        list(server.Server(url, None, None, 1).answers(prompts, groups))
    assert all(body["stop_token_ids"] == [0xFE, 256] for _, _, body in there.asked)


def test_a_server_that_is_another_one_is_refused():
    prompts = Prompts(Pieces(BytesTokenizer()))
    groups = list(tasks.read("copy", types.SimpleNamespace(**GIVEN)).make(prompts))
    with oracle({}, models=("small", "tiny")) as (_, url):
        for model, nearest in ((None, "--model=small"), ("tinny", "tiny")):
            with pytest.raises(ConfigError, match=f"small, tiny; nearest: {nearest}"):
                server.Server(url, model, None, 1)
    with oracle({}, more=1) as (_, url), pytest.raises(server.ServerError, match="does not take token ids as they are"):
        next(server.Server(url, None, None, 1).answers(prompts, groups))


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (("--server=http://127.0.0.1:9/v1",), 69, "http://127.0.0.1:9/v1: no answer"),
        (("--server=127.0.0.1:8000",), 2, "nearest: --server=http://127.0.0.1:8000/v1"),
        (("--server=http://127.0.0.1:99999/v1",), 2, "allowed: a URL"),
        (("--server=http://127.0.0.1:9/v1", "--dtype=float32"), 2, "--dtype: got 'float32'; allowed: without --server"),
        (("--server=http://127.0.0.1:9/v1", "--write=x.jsonl"), 2, "--write: got 'x.jsonl'; allowed: without"),
        (("--model=tiny",), 2, "--model: got 'tiny'; allowed: with --server alone"),
        (("--server=http://127.0.0.1:9/v1", "--api-key-file=none.txt"), 2, "none.txt"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(capsys, flags, code, named):
    assert evals.main(("copy", "--checkpoint=.", "--nocompile-cache", *flags)) == code
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1
    assert named in err


@pytest.mark.slow
@pytest.mark.parametrize("template", ["base", "chat"])
def test_our_own_server_answers_as_the_engine_does_in_process(tmp_path, capsys, template):
    pytest.importorskip("starlette")
    from tests import small
    from tests.inference.serve.running import Server
    from tests.train import cheap_run

    def varied_step(state, batch, *, config):
        """Weights whose answers do not repeat themselves."""
        model = jax.tree.map(lambda x: x * 4 if x.ndim > 3 else x, state.model)
        state, metrics = cheap_run.cheap_step(state, batch, config=config)
        return dataclasses.replace(state, model=model), metrics

    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        patch.setattr(loop.step, "train_step", varied_step)
        cheap_run.run(workdir := tmp_path / "tiny", small.config(small.write_text(tmp_path / "text"), train__steps=1))
    typed = ["copy", f"--checkpoint={workdir}", "--lengths=700,900", "--depths=4", f"--template={template}"]
    said: dict[str, list] = {}
    with Server(f"--checkpoint={workdir}", "--context=1024", "--slots=4") as running:
        url = running.until(r"(http://\S+/v1) serves 'tiny'")[1]
        for name, more in (("in process", []), ("server", [f"--server={url}"])):
            out = pathlib.Path(tmp_path / f"{name}.json")
            assert evals.main([*typed, "--nocompile-cache", f"--json={out}", *more]) == 0, capsys.readouterr().err
            lines = pathlib.Path(f"{out}.answers.jsonl").read_text().splitlines()
            said[name] = [{k: v for k, v in json.loads(line).items() if k != "cached"} for line in lines]
            assert json.loads(out.read_text())["prefilled_tokens"] < json.loads(out.read_text())["prompt_tokens"]
    assert said["server"] == said["in process"] and len(said["server"]) == 8
    assert len({line["text"] for line in said["server"]}) > 4


def test_a_server_that_says_nothing_or_names_that_are_none_is_refused_in_a_line(monkeypatch):
    monkeypatch.setattr(server, "_GREETING", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        began = time.monotonic()
        with pytest.raises(server.ServerError, match=f"{url}: no answer: timed out"):
            server.Server(url, None, None, 1)
        assert time.monotonic() - began < 5
    with (
        oracle({}, models=(7, None)) as (_, url),
        pytest.raises(server.ServerError, match="/models: it lists no model"),
    ):
        server.Server(url, None, None, 1)
    for model in (None, "b\x1b[2Jx"):
        with oracle({}, models=("b\x1b[2J\nmm01-eval: done", "c")) as (_, url), pytest.raises(ConfigError) as refused:
            server.Server(url, model, None, 1)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"\xff\xfe", "klé".encode(), b"a\x1b[2J", b"a\x01", b"a" * 2**17, None]
)
def test_a_file_without_a_key_is_refused_by_name_and_the_key_is_not_said(tmp_path, content):
    path = tmp_path / "key.txt"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: ") as refused:
        server.key_in(str(path))
    assert str(refused.value).isprintable() and "[2J" not in str(refused.value)
