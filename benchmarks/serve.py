"""Load for an OpenAI-compatible server: so many users, each asking again when it is answered; tokens and latencies.

It asks /v1/completions at --url, or starts mm01-serve with --checkpoint; it is a process of its own either way. Prompts
are token ids: `random` ones, or `shared`: three quarters of each are the same for all.

    python -m benchmarks.serve --checkpoint=tests/fixtures/chat_tiny [--users=1,4,16] [--json=FILE] [--picture=FILE.svg]
    python -m benchmarks.serve --url=http://127.0.0.1:8000 --workload=shared --users=1,8,32,128
"""

import asyncio
import contextlib
import itertools
import json
import pathlib
import random
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks import results
from benchmarks.results import Report, add_json
from tests.command_line import Parser, whole

SHARED = 0.75  # of a prompt


class Load(NamedTuple):
    """What is asked: tokens of a prompt and an answer, ids below `vocabulary`, streamed or whole."""

    workload: str
    prompt: int
    answer: int
    vocabulary: int
    streamed: bool

    def prompts(self, seed: int | str) -> Iterator[list[int]]:
        draw = random.Random(f"{seed} {self.streamed}")
        common = [draw.randrange(self.vocabulary) for _ in range(int(SHARED * self.prompt))]
        while True:
            own = [draw.randrange(self.vocabulary) for _ in range(self.prompt)]
            yield common + own[len(common) :] if self.workload == "shared" else own


class Asked(NamedTuple):
    """One request: seconds to its first token and to its end, what went wrong.

    pauses: seconds between events, each of one token or several. mean: seconds a token behind the first, None where
    that cannot be seen.
    """

    first: float
    whole: float
    pauses: list[float]
    mean: float | None
    tokens: int
    cached: int
    wrong: str | None


class Target(NamedTuple):
    host: str
    port: int
    model: str
    device: str


def body(target: Target, load: Load, prompt: list[int]) -> bytes:
    """Of a request."""
    asked = {"model": target.model, "prompt": prompt, "max_tokens": load.answer, "temperature": 1.0}
    if load.streamed:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked).encode()


async def ask(target: Target, load: Load, raw: bytes) -> Asked:
    """Asks on a connection of its own, as a new client does."""
    began = time.monotonic()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {target.host}\r\ncontent-type: application/json\r\n"
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(f"{head}connection: close\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        times, usage = await (_streamed(reader) if load.streamed and status == 200 else _whole(reader))
        writer.close()
    except (OSError, ValueError, IndexError, asyncio.IncompleteReadError) as error:
        return Asked(0.0, 0.0, [], None, 0, 0, f"{type(error).__name__}: {error}")
    if status != 200 or usage is None:
        return Asked(0.0, 0.0, [], None, 0, 0, f"status {status}")
    ended, tokens = time.monotonic(), usage["completion_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(pauses) / (tokens - 1) if pauses and tokens > 1 else None
    return Asked((times[0] if times else ended) - began, ended - began, pauses, mean, tokens, cached, None)


async def _streamed(reader: asyncio.StreamReader) -> tuple[list[float], dict | None]:
    """(when each event with a token came, what the last says of tokens)."""
    times, usage = [], None
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                return times, None
            usage = event.get("usage") or usage
            if event["choices"]:
                times.append(time.monotonic())
    return times, usage


async def _whole(reader: asyncio.StreamReader) -> tuple[list[float], dict | None]:
    return [], json.loads(await reader.read()).get("usage")


async def at_once(
    target: Target, load: Load, users: int, requests: int, seed: int | str | None = None
) -> tuple[list[Asked], float]:
    """All requests by so many users, each with one at a time; the seconds that took. seed: None is the users."""
    prompts, said = load.prompts(users if seed is None else seed), []
    waiting = iter([body(target, load, next(prompts)) for _ in range(requests)])

    async def user() -> None:
        for raw in waiting:
            said.append(await ask(target, load, raw))

    began = time.monotonic()
    await asyncio.gather(*(user() for _ in range(users)))
    return said, time.monotonic() - began


def figures(said: list[Asked], seconds: float) -> dict[str, tuple[float, str]]:
    """Quantities and their units."""
    good = [one for one in said if one.wrong is None]
    found: dict[str, tuple[float, str]] = {
        "requests": (len(said), "requests"),
        "failed": (len(said) - len(good), "requests"),
        "tokens a second": (sum(one.tokens for one in good) / seconds, "tokens/s"),
        "prompt tokens reused": (sum(one.cached for one in good), "tokens"),
    }
    series = {
        "first token": [one.first for one in good],
        "between tokens": [one.mean for one in good if one.mean is not None],
        "between events": [pause for one in good for pause in one.pauses],
        "whole": [one.whole for one in good],
    }
    for name, values in series.items():
        for share in (50, 99):
            if values:
                found[f"{name}, p{share}"] = (1000 * float(np.percentile(values, share)), "ms")
    return found


@contextlib.contextmanager
def server(checkpoint: str, context: int, slots: int) -> Iterator[str]:
    """The address of an mm01-serve that runs meanwhile."""
    command = [sys.executable, "-m", "mm01_jax.inference.serve", f"--checkpoint={checkpoint}", "--port=0"]
    command += ["--template=minimax-01", f"--context={context}", f"--slots={slots}", "--queue=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            if found := re.match(r"(http://\S+)/v1 serves", line):
                yield found[1]
                return
        raise ValueError(f"mm01-serve ended with {process.wait()}; what it says stands above")
    finally:
        process.terminate()
        process.communicate()


def target(url: str) -> Target:
    """The server at an address.

    Raises:
      ValueError: nothing answers there as mm01-serve does.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/state", timeout=10) as reply:
            state: dict[str, Any] = json.load(reply)
        device = results.processor() if state["device"] == "cpu" else state["device"]
        return Target(parts.hostname or "", parts.port or 80, state["model"], device)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--url={url}: got {error}; allowed: the address of an mm01-serve") from None


def draw(path: pathlib.Path, levels: dict[int, dict[str, tuple[float, str]]], title: str) -> None:
    """Tokens a second against the latency of a token, a point for each number of users."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    name = "between tokens" if all("between tokens, p99" in level for level in levels.values()) else "whole"
    speeds = [level["tokens a second"][0] for level in levels.values()]
    for share, style in ((50, "o-"), (99, "s--")):
        axes.plot(speeds, [level[f"{name}, p{share}"][0] for level in levels.values()], style, label=f"p{share}")
    for users, speed in zip(levels, speeds, strict=True):
        axes.annotate(f"{users}", (speed, levels[users][f"{name}, p50"][0]), (4, -12), textcoords="offset points")
    axes.set(title=title, xlabel="tokens a second, all users (their number at the points)", ylabel=f"{name}, ms")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def measure(given, address: str) -> int:
    """The exit code."""
    found = target(address)
    load = Load(given.workload, given.prompt, given.answer, given.vocabulary, not given.whole)
    subject = f"serve {found.model}, {load.workload} prompts of {load.prompt}, answers of {load.answer}"
    subject += ", whole" if given.whole else ", streamed"
    report, levels = Report(given.json, "benchmarks.serve", given.argv), {}
    asyncio.run(at_once(found, load, 1, 2, "first"))  # what is compiled once
    print(
        f"{'users':>6}{'failed':>8}{'tokens/s':>10}{'first ms p50':>14}{'p99':>9}{'token ms p50':>13}{'event p99':>11}"
    )
    for users in given.users:
        said, seconds = asyncio.run(at_once(found, load, users, max(given.requests, 2 * users)))
        levels[users] = figures(said, seconds)
        for quantity, (value, unit) in levels[users].items():
            report.add(f"{subject}, {users} users: {quantity}", round(value, 3), unit, device=found.device)
        shown = [levels[users].get(name, (0.0,))[0] for name in _SHOWN]
        print(
            f"{users:6d}{shown[0]:8.0f}{shown[1]:10.1f}{shown[2]:14.1f}{shown[3]:9.1f}{shown[4]:13.2f}{shown[5]:11.2f}"
        )
        for wrong in sorted({one.wrong for one in said if one.wrong}):
            print(f"  {wrong}", file=sys.stderr)
    if given.picture:
        draw(pathlib.Path(given.picture), levels, f"{subject}\n{found.device}")
    return 1 if any(level["failed"][0] for level in levels.values()) else 0


_SHOWN = (
    "failed",
    "tokens a second",
    "first token, p50",
    "first token, p99",
    "between tokens, p50",
    "between tokens, p99",
)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.serve", __doc__)
    parser.add_argument("--url", help="of a server that runs")
    parser.add_argument("--checkpoint", help="what to serve, where no --url is given")
    parser.add_argument("--workload", choices=("random", "shared"), default="random")
    parser.add_argument("--users", type=_numbers, default=[1, 4, 16], help="at a time, one number after another")
    parser.add_argument("--requests", type=whole(1), default=32, help="of each number of users, at least two a user")
    parser.add_argument("--prompt", type=whole(1), default=128, help="tokens")
    parser.add_argument("--answer", type=whole(1), default=32, help="tokens, at most")
    parser.add_argument("--vocabulary", type=whole(1), default=128, help="ids of prompts lie below")
    parser.add_argument("--slots", type=whole(1), default=16, help="of a server that is started")
    parser.add_argument("--whole", action="store_true", help="answers that are not streamed")
    parser.add_argument("--picture", metavar="FILE", help="throughput against latency, .svg or .png")
    add_json(parser)
    given = parser.parse_args(argv)
    given.argv = argv
    if (given.url is None) == (given.checkpoint is None):
        parser.error("allowed is one of --url=URL and --checkpoint=DIR")
    if given.url is not None:
        return measure(given, given.url)
    with server(given.checkpoint, given.prompt + given.answer, given.slots) as url:
        return measure(given, url)


def _numbers(text: str) -> list[int]:
    return [whole(1)(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
