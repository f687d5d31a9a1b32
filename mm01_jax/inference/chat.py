"""A conversation in a terminal, or of the lines of a pipe.

A line is what a person says; the answer comes as it is generated. Ctrl-C stops an answer, which stays as far as it
came; Ctrl-D ends. What a model thinks first is said aside, on stderr: a pipe has answers alone.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import numpy as np

from mm01_jax import signals
from mm01_jax.inference.thoughts import Said, Thoughts
from mm01_jax.messages import answer, screen
from mm01_jax.values import similar

MOST = 2**25  # characters of a line of a pipe
WORDS = {"/reset": "forgets the conversation", "/exit": "ends, as Ctrl-D does", "/help": "says this"}

# (ids of the prompt) -> pieces of the answer, and as the generator's value "stop" or "length".
Stream = Callable[[np.ndarray], Iterator[str]]


class Chat:
    """One conversation.

    Args:
      ids: makes the prompt of the messages so far.
      stream: says the answer to a prompt.
      thinks: whether answers begin with thoughts (`thoughts.py`), which stay in the conversation as they were said.
    """

    def __init__(
        self,
        ids: Callable[[Sequence[dict]], np.ndarray],
        stream: Stream,
        system: str | None = None,
        *,
        thinks: bool = False,
    ):
        self.ids, self.stream, self.thinks = ids, stream, thinks
        self.beginning = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.beginning)

    def run(self, out: TextIO | None = None) -> None:
        """Until the input ends. A terminal is asked for each line, a pipe is read."""
        out = sys.stdout if out is None else out
        terminal = sys.stdin.isatty()
        signals.take([signal.SIGINT], signal.default_int_handler)  # Ctrl-C is part of the conversation, no end of it
        if terminal:
            with contextlib.suppress(ImportError):  # not on every system
                import readline  # noqa: F401 - `input` then edits lines and remembers them
            print("/help lists what is not said to the model; Ctrl-C stops an answer, Ctrl-D ends", file=out)
        while True:
            try:
                line = input("> ") if terminal else _line()
                if line.strip() == "/exit":
                    return
                self.take(line, out)
            except KeyboardInterrupt:  # while no answer is being said
                print("\n(Ctrl-D or /exit ends)", file=out)
            except EOFError:
                if terminal:
                    print(file=out)
                return

    def take(self, line: str, out: TextIO) -> None:
        """One line: a word of ours or what a person says."""
        word = line.strip()
        if not word:
            return
        if word == "/reset":
            self.messages = list(self.beginning)
        elif word == "/help":
            print("\n".join(f"{name:8}{does}" for name, does in WORDS.items()), file=out)
        elif word.startswith("/") and not word.startswith("//"):
            near = next(iter(similar(word, WORDS, cutoff=0.0)), "/help")
            print(f"({word}: allowed: {', '.join(WORDS)}; nearest: {near}; //... says a line that starts so)", file=out)
        else:
            self._answer(word[1:] if word.startswith("//") else line, out)

    def _answer(self, said: str, out: TextIO) -> None:
        asked = [*self.messages, {"role": "user", "content": said}]
        try:
            prompt = self.ids(asked)
        except ValueError as error:  # the template refuses what was said
            print(f"({screen(error)})", file=out)
            return
        pieces, note, shown = [], "", Shown(out, self.thinks)
        try:
            finish = yield_all(self.stream(prompt), lambda piece: (pieces.append(piece), shown.take(piece)))
            note = " (cut at --max-tokens)" if finish == "length" else ""
        except KeyboardInterrupt:
            note = " (stopped)"
        shown.end()
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]
        print(note, file=out, flush=True)


def _line() -> str:
    """The next line of a pipe; EOFError at its end, ValueError where there is no line or no text."""
    try:
        line = sys.stdin.readline(MOST + 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: not UTF-8 ({error.reason})") from None
    if not line:
        raise EOFError
    if len(line) > MOST and not line.endswith("\n"):
        raise ValueError(f"stdin: a line of more than {MOST:,} characters")
    return line.removesuffix("\n")


def yield_all(pieces: Iterator[str], take: Callable[[str], object]) -> str | None:
    """Gives every piece to `take`; returns the generator's value."""
    while True:
        try:
            take(next(pieces))
        except StopIteration as end:
            return end.value


class Shown:
    """An answer on its way to a person: thoughts aside."""

    def __init__(self, out: TextIO, thinks: bool):
        self._out, self._thoughts, self._aside = out, Thoughts() if thinks else None, False

    def take(self, piece: str) -> None:
        if self._thoughts is None:
            _write(piece, self._out)
        else:
            self._show(self._thoughts.take(piece))

    def end(self) -> None:
        """What was held back, when nothing comes any more."""
        if self._thoughts is not None:
            self._show(self._thoughts.end())
            self._show(Said("", ""), over=True)

    def _show(self, said: Said, over: bool = False) -> None:
        if said.thinking:
            _write(said.thinking if self._aside else f"(thinks)\n{said.thinking}", sys.stderr)
            self._aside = True
        if self._aside and (said.text or over):
            _write("\n(answers)\n", sys.stderr)
            self._aside = False
        _write(said.text, self._out)


def _write(text: str, out: TextIO) -> None:
    out.write(answer(text, out))
    out.flush()
