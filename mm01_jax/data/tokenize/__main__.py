"""mm01-tokenize: text to a folder of tokens, once and in parallel; training reads it at once.

  mm01-tokenize --source=texts --tokenizer=tokenizer.json --out=tokens
  mm01-tokenize --source=texts --tokenizer=tokenizer.json --out=tokens --shard=3/16

Then train with --config.data.source=tokens. A command that was stopped goes on when it is given again.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 74 a full or broken disk,
130 interrupted.
"""

import contextlib
import fcntl
import os
import re
import sys
import time
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mm01_jax import arguments, command, files
from mm01_jax.flag import Command, Flag
from mm01_jax.messages import counted, screen
from mm01_jax.progress import clock

if TYPE_CHECKING:  # NumPy is imported when the flags are right, not before
    from mm01_jax.data.tokenize.plan import Plan
    from mm01_jax.data.tokenize.work import Event

SHARD_BYTES = 1 << 27  # of source

COMMAND = Command(
    name="mm01-tokenize",
    doc=__doc__,
    flags=(
        Flag("source", "stdlib, or a file, folder or glob, as data.source", example="texts", required=True),
        Flag("tokenizer", "bytes, or a tokenizer.json", example="tokenizer.json", required=True),
        Flag("out", "the folder of tokens: a new one, or one to go on with", example="tokens", required=True),
        Flag("workers", "processes that share the work (default as many as processors)", int, least=1, most=1024),
        Flag("shard", "of several machines, which this is of how many: each makes its part", example="3/16"),
        Flag("text_field", "the key of the text in lines of JSON", default="text", example="text"),
        Flag("max_bad_records", "records to skip and count before the work is refused", int, 0, least=0),
        Flag("beam", "options of an Apache Beam pipeline, which then does the work", example="--runner=FlinkRunner"),
        Flag("shard_bytes", "of the source in a file of tokens", int, SHARD_BYTES, least=1, most=1 << 32),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command.run(_run, argv, name=COMMAND.name, interrupted="interrupted; the same command goes on")


def _run(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    from mm01_jax.data.tokenize import plan as planning

    part, parts = _part(given.shard)
    _check_beam(given)
    fields = {name: getattr(given, name) for name in ("text_field", "max_bad_records", "shard_bytes")}
    plan = planning.make(planning.Asked(given.source, given.tokenizer, given.out, **fields), _say)
    if lost := plan.tokenizer.loses_blanks:
        _say(lost)
    planning.keep(plan)
    numbers = range(len(plan.shards))[part::parts]
    with _alone(plan, part, parts):
        if parts == 1:
            files.remove_unfinished(plan.out)
        workers = given.workers or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
        _say(
            f"{plan.facts['files']:,} files, {plan.facts['bytes'] / 1e6:,.1f} MB, {len(plan.shards):,} shards"
            + (f", {len(numbers):,} of them here" if parts > 1 else "")
        )
        if given.beam:
            from mm01_jax.data.tokenize import beam

            beam.run(plan, given.beam)
        else:
            _work(plan, numbers, workers)
        _end(plan, parts, numbers)


def _check_beam(given: types.SimpleNamespace) -> None:
    for name in ("shard", "workers"):
        if given.beam and getattr(given, name):
            raise arguments.refused(f"--{name}", getattr(given, name), "nothing, as --beam shares the work", "no flag")
    try:
        if given.beam:
            import apache_beam  # noqa: F401 - seconds, and asked before any work
    except ImportError as error:
        raise ValueError("--beam needs the `beam` extra: pip install 'mm01_jax[beam]'.") from error


def _part(shard: str | None) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard or "0/1")
    if not match or int(match[1]) >= int(match[2]):
        allowed = "i/n with 0 <= i < n: the number of this machine, from 0, and how many there are"
        raise arguments.refused("--shard", shard, allowed, "--shard=0/16")
    return int(match[1]), int(match[2])


@contextlib.contextmanager
def _alone(plan: "Plan", part: int, parts: int) -> Iterator[None]:
    """A context in which no other process of this machine does the same work."""
    fd = files.update(plan.out / f".part-{part}-of-{parts}.lock")
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--out={plan.out}: another mm01-tokenize is doing this work; wait for it") from None
        yield
    finally:
        os.close(fd)


def _work(plan: "Plan", numbers: Sequence[int], workers: int) -> None:
    from mm01_jax.data.tokenize import work

    sizes = [sum(piece.stop - piece.start for piece in plan.shards[number]) for number in numbers]
    progress, verified = _Progress(sum(sizes)), 0
    for event in work.do(plan, numbers, workers):
        if event.found == work.VERIFIED:
            verified += 1
            progress.leave_out(event)
            continue
        if event.found:
            progress.log(event.found)
        progress.more(event)
    progress.end()
    if verified:
        _say(f"{verified:,} shards were there; every byte of them is as it was written")


def _end(plan: "Plan", parts: int, numbers: Sequence[int]) -> None:
    from mm01_jax.data.text import DataError
    from mm01_jax.data.tokenize import manifest

    left = manifest.missing(plan)
    if gone := sorted({*numbers}.intersection(left)):
        what = f"{counted(len(gone), 'shard')} of this work, the first {gone[0]}"
        raise DataError(f"{plan.out}: {what}, made and gone: who deletes here? The same command goes on.")
    if left:
        _say(f"{len(left):,} of {len(plan.shards):,} shards are left to the other parts of --shard=i/{parts}")
        return
    made = manifest.finish(plan)
    if made["bad"]:
        _say(f"{counted(made['bad'], 'bad record')} skipped, the first: {made['bad_records'][0]}")
    if made["dropped"]:
        _say(
            f"{made['dropped']:,} characters of {made['documents_dropped']:,} documents have no token, and are left out"
        )
    _say(
        f"{plan.out}: {made['documents']:,} documents, {made['tokens']:,} tokens of {made['text_bytes']:,} bytes; "
        f"train with --config.data.source={plan.out}"
    )


def _say(text: str) -> None:
    print(screen(f"{COMMAND.name}: {text}"), flush=True)


class _Progress:
    """A line of how far the work is, rewritten on a terminal, repeated every few seconds elsewhere."""

    SECONDS = 5.0

    def __init__(self, total: int):
        self._total, self._seen, self._tokens = total, 0, 0
        self._began = self._shown = time.monotonic()
        self._open = False

    def leave_out(self, event: "Event") -> None:
        """What had been made before says nothing of how long the rest takes."""
        self._total -= event.seen

    def more(self, event: "Event") -> None:
        self._seen, self._tokens = self._seen + event.seen, self._tokens + event.tokens
        now = time.monotonic()
        if now - self._shown < (0.2 if sys.stdout.isatty() else self.SECONDS):
            return
        self._shown = now
        rate = self._seen / (now - self._began)
        self._total = max(self._total, self._seen)  # of files that unpack to more than they are
        left = clock((self._total - self._seen) / rate) if rate else "unknown time"
        line = f"tokenize {self._seen / 1e6:,.1f} of {self._total / 1e6:,.1f} MB  {rate / 1e6:,.2f} MB/s  {left} left"
        self._open = sys.stdout.isatty()
        print(f"\r{line}\033[K" if self._open else line, end="" if self._open else "\n", flush=True)

    def log(self, text: str) -> None:
        self.end()
        _say(text)

    def end(self) -> None:
        if self._open:
            print()
        self._open = False


if __name__ == "__main__":
    sys.exit(main())
