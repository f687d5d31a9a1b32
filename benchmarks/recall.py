"""A model that learns to find and to copy, and what it then finds at which length: stages, then the evaluations.

    python -m benchmarks.recall --workdir=runs/recall [--mixers=lightning] [--seconds=…] [--scan] [--json=FILE]
    python -m benchmarks.recall --workdir=/tmp/recall --small          a tiny model on a CPU, minutes
    python -m benchmarks.recall --workdir=/tmp/recall --small --copies    its first stage, 2 minutes

configs/recall_small_copies.py learns to look back, recall_small to find in documents of 1,024 bytes, recall_small_long
and recall_small_longest go on at 16,384 and 131,072; `--mixers=lightning` has the same size without softmax layers.
Then needles (a map, a figure), many needles, codes to be copied, and three cells of many needles from cold. `--scan`
holds one layer of each kind in the program of a step: on a GPU it is compiled a minute sooner, and slower by a tenth.
What is there already (a stage, an evaluation) is not done again.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator

from benchmarks.recall_asked import Asked
from benchmarks.results import Report, add_json, device
from configs import recall_small, recall_small_copies, recall_small_long, recall_small_longest, tiny
from mm01_jax.config import Config, DataConfig, ScheduleConfig
from mm01_jax.model import decoder
from mm01_jax.train import loop
from mm01_jax.train.preemption import Preempted
from tests.command_line import Parser

STAGES = {
    "copies": recall_small_copies,
    "short": recall_small,
    "long": recall_small_long,
    "longest": recall_small_longest,
}
# Of the small ones: source, tokens of a row, rows, steps, peak of the learning rate.
SMALL = {
    "copies": ("recall:256:twice", 256, 8, 300, 6e-3),
    "short": ("recall:256", 256, 16, 500, 6e-3),
    "long": ("recall:512", 512, 8, 250, 4e-3),
}
# A stage ends early when the mean loss of its last 20 steps is below: nats a learnt token.
LEARNT = {"copies": 0.1, "short": 0.045, "long": 0.004}
MAP = "5k,6k,7k,8k,10k,12k,16k,20k,24k,32k,40k,48k,64k,96k,128k,192k,256k,384k,512k,1m"
# Task -> its flags: what a large model is asked, and a small one.
ASKED = {
    "needle": (("--lengths=1k,4k,16k,32k,64k,128k", "--depths=10"), ("--lengths=512,1k", "--depths=24")),
    "copy": (("--lengths=8k", "--depths=50"), ("--lengths=512", "--depths=3", "--samples=8")),
    "needles": ((f"--lengths={MAP}", "--depths=40"), ("--lengths=1k", "--depths=4", "--samples=6")),
}
LONGEST, SLOTS = (2**20, 2**10), (16, 8)  # of the engine that is asked


def names(given: argparse.Namespace) -> list[str]:
    """Of the stages."""
    return ["copies"] if given.copies else list(SMALL if given.small else STAGES)


def configs(given: argparse.Namespace) -> list[tuple[str, Config]]:
    """(name, config) of each stage."""
    found = []
    for number, name in enumerate(names(given)):
        config = STAGES[name].get_config()
        if given.small:
            config = shrunk(name, config)
        if given.mixers == "lightning":
            period = ("lightning",) * len(config.model.period)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, period=period))
        train, schedule = config.train, config.optimizer.schedule
        if given.steps is not None:
            count = given.steps[number]
            schedule = dataclasses.replace(schedule, warmup_steps=min(schedule.warmup_steps, max(count // 10, 1)))
            if schedule.decay_start is not None:
                schedule = dataclasses.replace(schedule, decay_start=max(count * 4 // 5, 1))
            train = dataclasses.replace(train, steps=count, eval_every=max(count // 2, 1))
        optimizer = dataclasses.replace(config.optimizer, schedule=schedule)
        train = dataclasses.replace(train, seed=given.seed)
        found.append((name, dataclasses.replace(config, optimizer=optimizer, train=train)))
    return found


def shrunk(name: str, config: Config) -> Config:
    """The same stage of a model of 222,000 parameters."""
    source, length, rows, steps, peak = SMALL[name]
    small = tiny.get_config()
    changes = {"num_periods": 1, "period": ("lightning", "softmax") * 2}  # and the base of tiny.py throughout
    changes |= {"num_experts": 1, "num_experts_per_token": 1, "expert_dim": 64}
    changes |= {"head_dim": 32, "rotary_dim": 16}  # with 4 pairs that turn digits changed places
    changes |= dict.fromkeys(("lightning_alpha", "softmax_alpha", "experts_alpha"), (2 * 4) ** 0.25)
    schedule = ScheduleConfig(peak=peak, warmup_steps=min(50, steps // 4))
    if name == "long":
        schedule = dataclasses.replace(schedule, decay_start=steps // 3, final=peak / 20)
    train = {"steps": steps, "batch_size": rows, "sequence_length": length, "eval_every": steps // 2}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(small.model, **changes),
        compute=small.compute,
        data=DataConfig(source=source, held_out=0.01),
        train=dataclasses.replace(small.train, **train, eval_batches=4, loss_chunk=4096),
        mesh=small.mesh,
        optimizer=dataclasses.replace(config.optimizer, schedule=schedule),
    )


def trained(workdir: pathlib.Path, stages: list[tuple[str, Config]], most: list[float] | None = None) -> dict:
    """Seconds that each stage has taken, each going on from the one before; their runs lie in `workdir`.

    most: seconds of each, at which it ends; or, with them, when it has learnt.
    """
    seconds, before = {}, None
    for number, (name, config) in enumerate(stages):
        began, run = time.monotonic(), workdir / name
        with contextlib.nullcontext() if most is None else ended(run, most[number], LEARNT.get(name, 0.0)):
            loop.run(config, str(run), before, keeps_program=True)
        before, seconds[name] = str(run), time.monotonic() - began
    return seconds


@contextlib.contextmanager
def ended(run: pathlib.Path, seconds: float, learnt: float) -> Iterator[None]:
    """A run within ends, saved, after so many seconds, or when the mean of its last 20 losses is below `learnt`."""
    over = threading.Event()

    def watch() -> None:
        end = time.monotonic() + seconds
        while not over.wait(0.25):
            last = [record["loss"] for record in _records(run, tail=2**17)[-20:]]
            if len(last) == 20 and (time.monotonic() > end or sum(last) < 20 * learnt):
                os.kill(os.getpid(), signal.SIGTERM)
                break

    watching = threading.Thread(target=watch, daemon=True)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes as the run ends by itself
    watching.start()
    try:
        with contextlib.suppress(Preempted):
            yield
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGTERM, before)


def _records(run: pathlib.Path, tail: int | None = None) -> list[dict]:
    """What a run has written of its steps, or the last so many bytes of it; a line at either end may be half there."""
    if not (path := run / "metrics.jsonl").exists():
        return []
    with path.open("rb") as file:
        file.seek(0 if tail is None else max(0, path.stat().st_size - tail))
        lines = file.read().decode().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def tell(report: Report, subject: str, scores: dict, place: str) -> None:
    """The rows of a task."""
    report.add(f"{subject}: time", round(scores["seconds"], 1), "s", device=place)
    share = scores["prefilled_tokens"] / scores["prompt_tokens"]
    report.add(f"{subject}: tokens taken in", round(share, 4), "of the prompts'", device=place)
    for cell in scores["cells"]:
        what = f"{subject} of {cell['length']:,} tokens"
        report.add(f"{what}: score", round(cell["mean"], 4), device=place)
        report.add(f"{what}: interval", f"{cell['low']:.4f} to {cell['high']:.4f}", "95 %", device=place)
        report.add(f"{what}: samples", cell["count"], device=place)


def tell_stage(report: Report, subject: str, run: pathlib.Path, seconds: float, place: str) -> None:
    """The rows of a stage."""
    records = _records(run)
    last, speeds = records[-20:], [record["tokens_per_second"] for record in records]
    report.add(f"{subject}: train", round(seconds, 1), "s", device=place)
    report.add(f"{subject}: steps", records[-1]["step"], device=place)
    report.add(f"{subject}: speed", round(statistics.median(speeds)), "tokens/s", device=place)
    loss = sum(record["loss"] for record in last) / len(last)
    report.add(f"{subject}: loss of answers, last 20 steps", round(loss, 4), "nats a token", device=place)
    if held_out := [record["held_out_loss"] for record in records if "held_out_loss" in record]:
        report.add(f"{subject}: held-out loss of answers", round(held_out[-1], 4), device=place)


def _counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.recall", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where runs, scores and figures lie")
    parser.add_argument("--mixers", choices=("hybrid", "lightning"), default="hybrid", help="what the layers are")
    parser.add_argument("--small", action="store_true", help="the size of configs/tiny.py")
    parser.add_argument("--copies", action="store_true", help="the first stage alone, which learns to look back")
    parser.add_argument("--scan", action="store_true", help="a step's program holds one layer of each kind")
    parser.add_argument("--steps", type=_counts, help="of each stage, parted by commas (default: their configs')")
    parser.add_argument("--seconds", type=_counts, help="of each stage at most; it ends earlier when it has learnt")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    add_json(parser)
    given = parser.parse_args(argv)
    for flag, counts in (("--steps", given.steps), ("--seconds", given.seconds)):
        if counts is not None and len(counts) != len(of := names(given)):
            parser.error(f"{flag}: got {len(counts)} numbers; allowed: {len(of)}, of {', '.join(of)}")
    given.workdir.mkdir(parents=True, exist_ok=True)
    if given.scan:
        decoder.MOST_UNROLLED = 0
    report, place = Report(given.json, "benchmarks.recall", argv), device()
    stages = configs(given)
    subject = f"recall {'tiny' if given.small else 'small'}, {given.mixers}"
    for name, seconds in trained(given.workdir, stages, given.seconds).items():
        tell_stage(report, f"{subject}, stage {name}", given.workdir / name, seconds, place)
    if given.copies:  # it finds nothing yet
        return 0
    asked = Asked(given.workdir / stages[-1][0], LONGEST[given.small], SLOTS[given.small])
    for task, flags in ASKED.items():
        scores = asked.scores(task, flags[given.small], given.workdir / f"{task}.json")
        tell(report, f"{subject}, {task}", scores, place)
    cold = asked.cold("needles", ASKED["needles"][given.small])
    words = f"of {', '.join(f'{length:,}' for length, _ in cold)} tokens"
    report.add(f"{subject}, needles: as from cold", sum(same for _, same in cold), words, device=place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
