"""What mm01-serve keeps of its engine's speed, and how long others wait while a very long prompt is taken in.

Random weights of a config (`benchmarks.serve_random`). First so many users at a time ask the engine without a server,
then the server whole and streamed. With --long so many users stream answers while one sends a prompt of so many tokens:
what they wait between events, which bring several tokens, and between tokens.

    python -m benchmarks.serve_engine --users=128,32,8,1 --json=FILE        one H200
    python -m benchmarks.serve_engine --long=1048576 --others=7 --json=FILE
    python -m benchmarks.serve_engine --config=tiny --slots=4 --users=1,4 --prompt=16 --answer=16      tries it on a CPU
"""

import asyncio
import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.results import Report, add_json
from benchmarks.serve import Load, Target, at_once, figures, target
from tests.command_line import Parser, list_of_whole, whole

QUIET_SECONDS = 2.0  # that others stream before the long prompt comes


class Server(NamedTuple):
    """own: tokens a second of the engine alone, by users."""

    target: Target
    own: dict[int, float]


@contextlib.contextmanager
def server(*flags: str) -> Iterator[Server]:
    """A `benchmarks.serve_random` that runs meanwhile."""
    command = [sys.executable, "-m", "benchmarks.serve_random", *flags]
    process, found = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), {}
    try:
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            if own := re.match(r"own (\d+) (\S+)", line):
                found[int(own[1])] = float(own[2])
            if address := re.match(r"(http://\S+)/v1 serves", line):
                yield Server(target(address[1]), found)
                return
        raise ValueError(f"the server ended with {process.wait()}")
    finally:
        process.terminate()
        print(process.communicate()[0], flush=True)


def speeds(given, report: Report) -> None:
    flags = [f"--{name}={getattr(given, name)}" for name in ("config", "slots", "prompt", "answer", "requests")]
    flags += [f"--users={','.join(map(str, given.users))}", f"--context={given.prompt + given.answer}"]
    with server(*flags) as made:
        for streamed, users in _asked(given):
            load = Load("random", given.prompt, given.answer, 256, streamed)
            asyncio.run(at_once(made.target, load, 1, 2, "first"))
            said, seconds = asyncio.run(at_once(made.target, load, users, given.requests * users))
            _report_speed(given, report, made, (load, users), figures(said, seconds))


def _asked(given) -> list[tuple[bool, int]]:
    """(whether answers are streamed, users), one after another: the first number streamed, all whole, the others."""
    whole = [(False, users) for users in given.users if given.answers != "streamed"]
    first, *others = [(True, users) for users in given.users] if given.answers != "whole" else [None]
    return [one for one in (first, *whole, *others) if one is not None]


def _report_speed(given, report: Report, made: Server, asked: tuple[Load, int], found: dict) -> None:
    load, users = asked
    how = "streamed" if load.streamed else "whole"
    what = f"serve {given.config}, prompts of {load.prompt}, answers of {load.answer}, {how}, {users} users"
    found["part of the engine's own"] = (found["tokens a second"][0] / made.own[users], "")
    found["the engine's own"] = (made.own[users], "tokens/s")
    for quantity, (value, unit) in found.items():
        report.add(f"{what}: {quantity}", round(value, 4), unit, device=made.target.device)
    shown = {name: round(value, 3) for name, (value, _) in found.items()}
    print(f"{how} {users}: {shown}", flush=True)


class Event(NamedTuple):
    """When it came, how long after the last of its answer, how many tokens it brought."""

    at: float
    pause: float
    tokens: int


async def stream(made: Server, prompt: list[int], answer: int) -> list[Event]:
    """The events of one streamed answer; the first one's pause is from the request on."""
    body = {"model": made.target.model, "prompt": prompt, "max_tokens": answer, "logprobs": 0, "stream": True}
    raw = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    reader, writer = await asyncio.open_connection(made.target.host, made.target.port)
    began, found = time.monotonic(), []
    writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(event["error"]["message"])
            now, tokens = time.monotonic(), len(event["choices"][0]["logprobs"]["tokens"])
            found.append(Event(now, now - (found[-1].at if found else began), tokens))
    writer.close()
    if not found:
        raise ValueError("an answer without an event")
    return found


async def beside(made: Server, load: Load, long: list[int], given) -> tuple[float, float, list[Event]]:
    """(seconds of the long prompt, when it was sent, events of the others while it was taken in and before).

    Where it takes longer than given.seconds those are the seconds, and nobody waits for its end.
    """
    prompts, over, events = load.prompts("others"), asyncio.Event(), []

    async def user() -> None:
        while not over.is_set():
            events.extend((await stream(made, next(prompts), load.answer))[1:])

    users = [asyncio.ensure_future(user()) for _ in range(given.others)]
    await asyncio.sleep(QUIET_SECONDS)
    sent = time.monotonic()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stream(made, long, 1), given.seconds)
    seconds = time.monotonic() - sent
    over.set()
    await asyncio.gather(*users)
    return seconds, sent, events


def waits(given, report: Report) -> None:
    flags = [f"--config={given.config}", f"--context={given.long + 1}", f"--slots={given.others + 1}"]
    load = Load("random", given.prompt, given.answer, 256, True)
    long = list(itertools.islice(Load("random", given.long, 1, 256, True).prompts("long"), 1))[0]
    with server(*flags) as made:
        asyncio.run(at_once(made.target, load, given.others, 2 * given.others))
        seconds, sent, events = asyncio.run(beside(made, load, long, given))
    during = [one for one in events if sent < one.at < sent + seconds]
    what = f"serve {given.config}, {given.others} users while a prompt of {given.long:,} is taken in"
    rows = {"the prompt's first token": (seconds, "s"), "tokens": (sum(one.tokens for one in during), "tokens")}
    for when, some in (("", during), ("before it, ", [one for one in events if one.at < sent])):
        for name, values in (
            ("between events", [one.pause for one in some]),
            ("between tokens", [one.pause / one.tokens for one in some for _ in range(one.tokens)]),
        ):
            for share in (50, 99):
                if values:
                    rows[f"{when}{name}, p{share}"] = (1000 * float(np.percentile(values, share)), "ms")
    for quantity, (value, unit) in rows.items():
        report.add(f"{what}: {quantity}", round(value, 3), unit, device=made.target.device)
        print(f"{quantity}: {value:.3f} {unit}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.serve_engine", __doc__)
    parser.add_argument("--config", default="benchmarks/peer_shape.py")
    parser.add_argument("--users", type=list_of_whole(1), default=[], help="at a time, one number after another")
    parser.add_argument("--answers", choices=("both", "whole", "streamed"), default="both")
    parser.add_argument("--requests", type=whole(1), default=8, help="of each user")
    parser.add_argument("--slots", type=whole(1), default=128)
    parser.add_argument("--prompt", type=whole(1), default=512, help="tokens")
    parser.add_argument("--answer", type=whole(1), default=128, help="tokens")
    parser.add_argument("--long", type=whole(1), help="tokens of a prompt that comes while others stream")
    parser.add_argument("--seconds", type=whole(1), default=300, help="that it may take")
    parser.add_argument("--others", type=whole(1), default=7, help="users meanwhile")
    add_json(parser)
    given = parser.parse_args(argv)
    report = Report(given.json, "benchmarks.serve_engine", argv)
    if given.users:
        speeds(given, report)
    if given.long:
        waits(given, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
