"""A model that learns to find and to copy, and what it then finds at which length: stages, then the evaluations.

    python -m benchmarks.recall --workdir=runs/recall [--mixers=lightning] [--steps=…] [--scan] [--json=FILE]
    python -m benchmarks.recall --workdir=/tmp/recall --small          a tiny model on a CPU, minutes

configs/recall_small_copies.py learns to look back, recall_small to find in documents of 1,024 bytes, recall_small_long
and recall_small_longest go on at 16,384 and 131,072; `--mixers=lightning` has the same size without softmax layers.
Then needles (a map, a figure), many needles, and codes to be copied. `--scan` holds one layer of each kind in the
program of a step: on a GPU it is compiled a minute sooner, and slower by a tenth. What is there already (a stage, an
evaluation) is not done again.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
import time

from benchmarks.results import Report, add_json, device
from configs import recall_small, recall_small_copies, recall_small_long, recall_small_longest, tiny
from mm01_jax.config import Config, DataConfig, ScheduleConfig
from mm01_jax.evals import __main__ as evals
from mm01_jax.model import decoder
from mm01_jax.train import loop
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
# Task -> its flags: what a large model is asked, and a small one.
ASKED = {
    "needle": (("--lengths=1k,4k,16k,32k,64k,128k", "--depths=10"), ("--lengths=512,1k", "--depths=24")),
    "copy": (("--lengths=8k", "--depths=50"), ("--lengths=512", "--depths=3", "--samples=8")),
    "needles": (("--lengths=4k,32k,128k,256k,512k,1m", "--depths=20"), ("--lengths=1k", "--depths=4", "--samples=6")),
}


def configs(given: argparse.Namespace) -> list[tuple[str, Config]]:
    """(name, config) of each stage."""
    found = []
    for number, name in enumerate(SMALL if given.small else STAGES):
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


def trained(workdir: pathlib.Path, stages: list[tuple[str, Config]], before: str | None = None) -> dict[str, float]:
    """Seconds that each stage has taken; their runs lie in `workdir`. before: what the first one goes on from."""
    seconds = {}
    for name, config in stages:
        began = time.monotonic()
        loop.run(config, str(workdir / name), before)
        before, seconds[name] = str(workdir / name), time.monotonic() - began
    return seconds


def evaluated(workdir: pathlib.Path, stage: str, task: str, flags: tuple[str, ...]) -> dict:
    """The scores of a task, of a stage's model; its table is printed."""
    out = workdir / f"{task}.json"
    if not out.exists():
        figure = [f"--figure={workdir / task}.png"] if importlib.util.find_spec("matplotlib") else []
        code = evals.main([task, f"--checkpoint={workdir / stage}", f"--json={out}", *figure, *flags])
        if code:
            raise SystemExit(code)
    return json.loads(out.read_text())


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


def _last_loss(run: pathlib.Path) -> float:
    """Nats a token."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return round([record["held_out_loss"] for record in records if "held_out_loss" in record][-1], 4)


def _counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.recall", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where runs, scores and figures lie")
    parser.add_argument("--mixers", choices=("hybrid", "lightning"), default="hybrid", help="what the layers are")
    parser.add_argument("--small", action="store_true", help="the size of configs/tiny.py")
    parser.add_argument("--scan", action="store_true", help="a step's program holds one layer of each kind")
    parser.add_argument("--steps", type=_counts, help="of each stage, parted by commas (default: their configs')")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    add_json(parser)
    given = parser.parse_args(argv)
    stages = SMALL if given.small else STAGES
    if given.steps is not None and len(given.steps) != len(stages):
        parser.error(f"--steps: got {len(given.steps)} numbers; allowed: {len(stages)}, of {', '.join(stages)}")
    given.workdir.mkdir(parents=True, exist_ok=True)
    if given.scan:
        decoder.MOST_UNROLLED = 0
    report, place = Report(given.json, "benchmarks.recall", argv), device()
    stages = configs(given)
    subject = f"recall {'tiny' if given.small else 'small'}, {given.mixers}"
    for name, seconds in trained(given.workdir, stages).items():
        report.add(f"{subject}, stage {name}: train", round(seconds, 1), "s", device=place)
        report.add(f"{subject}, stage {name}: held-out loss of answers", _last_loss(given.workdir / name), device=place)
    for task, flags in ASKED.items():
        tell(report, f"{subject}, {task}", evaluated(given.workdir, stages[-1][0], task, flags[given.small]), place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
