"""What is said is at most a screen, and nothing in it is obeyed by a terminal."""

import io

import pytest

from mm01_jax import messages
from mm01_jax.files import quoted, shown
from mm01_jax.inference import chat
from mm01_jax.progress import Progress
from tests.house.checkout import files


def test_a_message_is_a_screen_and_nothing_in_it_moves_a_cursor():
    said = messages.screen("a name \x1b[2J\x07 of a tensor\r\n" + "line\n" * 5000)
    assert said.count("\n") == messages.LINES - 1 and said.endswith("more lines")
    assert all(line.isprintable() for line in said.splitlines())
    assert len(messages.screen("x" * 10**6)) <= messages.CHARACTERS


def test_what_is_said_on_the_way_goes_through_the_screen_in_every_command(capsys):
    messages.say("a name \x1b[2J")
    Progress(0, 1).log("a name \x1b[2J")
    assert capsys.readouterr().out == "a name \\x1b[2J\n" * 2
    code = [path for path in files() if path.suffix == ".py" and "mm01_jax" in path.parts]
    assert len(code) > 200 and not [path for path in code if "= print" in path.read_text()]


@pytest.mark.parametrize("name", ["\x1b]0;x\x07", "a\nb", "\u202egpj", "\udcff", "k" * 10**6, "\r\n" * 5000])
def test_a_name_out_of_a_file_is_shown_in_one_short_line(name):
    for text in (shown(name), quoted(name), quoted([name])):
        assert text.isprintable() and len(text) < 220


def test_names_that_differ_in_numbers_alone_are_one_problem():
    names = [f"layers.{i}.experts.{j}.w1" for i in range(80) for j in range(32)]
    assert messages.grouped("missing", [*names, "norm"]) == [
        "missing 2,560 of layers.*.experts.*.w1, the first layers.0.experts.0.w1",
        "missing norm",
    ]
    assert messages.grouped("missing", names[:2]) == [f"missing {name}" for name in names[:2]]


def test_a_listing_says_how_much_it_leaves_out():
    said = messages.listing([f"problem {i}" for i in range(8243)])
    assert said.endswith("; and 8,231 more") and said.count(";") == messages.LISTED


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_says_gives_a_terminal_no_orders_and_a_pipe_has_it_as_it_is(terminal):
    class Out(io.StringIO):
        def isatty(self):
            return terminal

    said = "\x1b[2J\r\x07\x9b1A\x7f"
    text = "é 日本\u3000語 👩\u200d💻\xa0!\n\tx"
    assert messages.answer(text, Out()) == text
    assert messages.answer(said, Out()) == (r"\x1b[2J\r\x07\x9b1A\x7f" if terminal else said)
    chat.Shown(out := Out(), thinks=False).take(f"a{said}")
    assert out.getvalue() == f"a{messages.answer(said, out)}"


def test_numbers_that_are_the_same_in_all_that_is_told_together_stay():
    told = messages.together(f"/runs/s6/arrays/{number}: missing" for number in range(7))
    assert told == ["7 of /runs/s6/arrays/*: missing, the first /runs/s6/arrays/0: missing"]


def test_a_name_of_several_lines_is_a_line_of_a_list():
    assert messages.together(["missing x\nmm01-convert: all agrees"]) == ["missing x\\nmm01-convert: all agrees"]
