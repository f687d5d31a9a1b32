"""A conversation by lines, and a file of prompts: what is said, kept, forgotten and refused, on a model that echoes."""

import io
import itertools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from mm01_jax.inference import answer_file, prompt_file
from mm01_jax.inference.asked import Answer
from mm01_jax.inference.chat import Chat
from tests.house.checkout import ROOT


def ids(messages) -> list:
    """A "prompt" that is the conversation, and a template that refuses one word."""
    if messages[-1]["content"] == "forbidden":
        raise ValueError("this template refuses that")
    return [(message["role"], message["content"]) for message in messages]


def stream(prompt):
    """Answers with the number of messages and the last one, in pieces."""
    yield f"{len(prompt)}:"
    yield prompt[-1][1]
    return "length" if "long" in prompt[-1][1] else "stop"


def talk(monkeypatch, *lines: str, chat: Chat | None = None) -> tuple[Chat, str]:
    before = signal.getsignal(signal.SIGINT)
    chat, out = chat or Chat(ids, stream), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    try:
        chat.run(out)
    finally:
        signal.signal(signal.SIGINT, before)
    return chat, out.getvalue()


def test_lines_of_a_pipe_are_answered_in_a_conversation_that_grows(monkeypatch):
    chat, out = talk(monkeypatch, "one", "", "two")
    assert out == "1:one\n3:two\n"
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_a_line_without_end_and_bytes_that_are_no_text_are_refused(monkeypatch):
    chat = Chat(ids, stream)
    monkeypatch.setattr("mm01_jax.inference.chat.MOST", 100)
    with pytest.raises(ValueError, match="stdin: a line of more than 100 characters"):
        talk(monkeypatch, "x" * 100, "x" * 101, chat=chat)
    assert len(chat.messages) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(ValueError, match="stdin: not UTF-8"):
            chat.run(io.StringIO())
    finally:
        signal.signal(signal.SIGINT, before)


def test_words_of_ours_are_not_said_to_the_model(monkeypatch):
    chat, out = talk(monkeypatch, "one", "/reset", "two", "/rest", "//etc", "long", "/exit", "three")
    assert out.splitlines() == [
        "1:one",
        "1:two",
        "(/rest: allowed: /reset, /exit, /help; nearest: /reset; //... says a line that starts so)",
        "3:/etc",
        "5:long (cut at --max-tokens)",
    ]
    assert "/reset" in talk(monkeypatch, "/help")[1]
    assert len(chat.messages) == 6


def test_a_system_message_stays_through_a_reset(monkeypatch):
    _, out = talk(monkeypatch, "one", "/reset", "two", chat=Chat(ids, stream, "Be brief."))
    assert out == "2:one\n2:two\n"


def test_what_the_template_refuses_was_not_said(monkeypatch):
    _, out = talk(monkeypatch, "forbidden", "one")
    assert out == "(this template refuses that)\n1:one\n"


def test_thoughts_are_said_aside_and_stay_in_the_conversation(monkeypatch, capsys):
    said = ["<think>\n4, I th", "ink\n</thi", "nk>\n\nIt is ", "4"]

    def answer(prompt):
        yield from said
        return "stop"

    chat, out = talk(monkeypatch, "2 + 2?", chat=Chat(ids, answer, thinks=True))
    assert out == "It is 4\n" and capsys.readouterr().err == "(thinks)\n4, I think\n(answers)\n"
    assert chat.messages[-1]["content"] == "".join(said)
    said[:] = ["<think>on and on"]
    assert talk(monkeypatch, "again", chat=chat)[1] == "\n"
    assert capsys.readouterr().err == "(thinks)\non and on\n(answers)\n"


TERMINAL = """
import sys, time
from mm01_jax.inference.chat import Chat
def stream(prompt):
    yield "answer "
    if prompt[-1]["content"] == "wait":
        time.sleep(60)
    yield str(len(prompt))
Chat(lambda messages: messages, stream).run()
print("ended")
"""


class Terminal:
    """The other end of a terminal that a program runs in."""

    def __init__(self, code: str):
        self.end, theirs = pty.openpty()
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, **streams)
        os.close(theirs)
        self.seen = ""

    def until(self, text: str, *, interrupt: bool = False) -> None:
        """Reads to a text. With `interrupt` it presses Ctrl-C, and again when nothing came of it: a signal that comes
        just before a program waits for a line is not seen until it has one."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if interrupt:
                self.process.send_signal(signal.SIGINT)
            if select.select([self.end], [], [], 5)[0]:
                try:
                    self.seen += os.read(self.end, 1000).decode()
                except OSError as error:  # nobody is in this terminal any more
                    raise AssertionError(self.seen) from error
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.end, text)


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends_a_terminal():
    terminal = Terminal(TERMINAL)
    try:
        terminal.until("> ")
        terminal.type(b"wait\n")
        terminal.until("answer ")
        terminal.until("(stopped)", interrupt=True)
        terminal.until("> ")
        terminal.until("(Ctrl-D or /exit ends)", interrupt=True)
        terminal.until("> ")
        terminal.type(b"on\n")
        terminal.until("answer 3")
        terminal.until("> ")
        terminal.type(b"\x04")
        terminal.until("ended")
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)


def write(path, *lines) -> str:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return str(path)


def test_answers_keep_the_order_and_the_fields_of_their_prompts(tmp_path):
    lines = [
        {"id": 7, "prompt": "é", "prompt_id": "x", "n": 2},
        {"messages": [{"role": "user", "content": "x"}], "more": [1]},
    ]
    path, out = write(tmp_path / "a.jsonl", *lines), tmp_path / "b.jsonl"
    read = prompt_file.read(path)
    assert read == lines
    answers = [Answer("1", "stop"), Answer("ü", "length", "é")]
    answer_file.finish(str(out), answer_file.Begun(), zip(read, answers, strict=True))
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        lines[0] | {"text": "1", "finish": "stop"},
        lines[1] | {"text": "ü", "finish": "length", "thinking": "é"},
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 2: not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (b"\xff", "not UTF-8 (at byte 0"),
        (b"", "not JSON"),
        (b"[" * 99999, "more than 64 deep"),
        (["a"], "got a JSON list; allowed: an object"),
        ({"id": 1}, "got neither; allowed: either 'prompt' or 'messages'"),
        ({"prompt": "a", "option": {}}, "got the key 'option'; allowed: prompt, messages, images, tools, options"),
        ({"prompt": "a", "image": ["a.png"]}, "got the key 'image'; "),
        ({"Prompt": "a"}, "nearest: prompt"),
        ({"message": []}, "nearest: messages"),
        ({"messages": [{"role": "user", "content": "x"}], "tool": []}, "nearest: tools"),
        ({"prompt": "a", "tools": [{"name": "look"}]}, "tools: allowed of a conversation"),
        ({"prompt": "a", "messages": []}, "got prompt and messages"),
        ({"prompt": ""}, "prompt: got ''"),
        ({"prompt": 3}, "prompt: got 3; allowed: a text"),
        ({"prompt": "a", "text": "b"}, "has 'text' already"),
        ({"messages": []}, "messages: got []"),
        ({"messages": [{"role": "user"}]}, "messages[0]: got {'role': 'user'}"),
    ],
    ids=itertools.count(),
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, line, said):
    path = write(tmp_path / "a.jsonl", {"prompt": "fine"}, line, {"prompt": "fine"})
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: ") as caught:
        prompt_file.read(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_lines_and_a_place_that_is_the_prompts_own_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no line"):
        prompt_file.read(path)
    with pytest.raises(ValueError, match="--out="):
        answer_file.check_place(str(path), path)
    for beside in ("partial", "partial.json"):
        prompts = write(tmp_path / f"b.jsonl.{beside}")
        with pytest.raises(ValueError, match=rf"lie in b\.jsonl\.{beside} at first: allowed: another"):
            answer_file.check_place(str(tmp_path / "b.jsonl"), prompts)
