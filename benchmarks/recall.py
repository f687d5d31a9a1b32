"""A model that learns to find and to copy, and what it then finds at which length: two stages, then the evaluations.

    python -m benchmarks.recall --workdir=runs/recall [--mixers=lightning] [--steps=6000] [--json=FILE]
    python -m benchmarks.recall --workdir=/tmp/recall --small          a tiny model on a CPU, minutes

configs/recall_small.py learns from documents of 4,096 bytes, recall_small_long goes on at 32,768 tokens with a larger
base of the rotary positions; `--mixers=lightning` has the same size without softmax layers. Then needles (a map, a
figure), many needles, and codes to be copied. What is there already (a stage, an evaluation) is not done again.
"""

import dataclasses
import json
import pathlib
import sys
import time

from benchmarks.results import Report, add_json, device
from configs import recall_small, recall_small_long, tiny
from mm01_jax.config import Config, DataConfig
from mm01_jax.evals import __main__ as evals
from mm01_jax.train import loop
from tests.command_line import Parser

STAGES = (("short", recall_small), ("long", recall_small_long))
# Task -> its flags: what a large model is asked, and a small one.
ASKED = {
    "needle": (("--lengths=1k,4k,16k,64k,128k,256k,512k,1m", "--depths=10"), ("--lengths=512,1k", "--depths=4")),
    "needles": (("--lengths=4k,32k,128k", "--depths=20"), ("--lengths=1k", "--depths=4")),
    "copy": (("--lengths=8k", "--depths=50"), ("--lengths=1k", "--depths=8")),
}


def configs(mixers: str, small: bool, steps: int | None, long_steps: int | None) -> list[tuple[str, Config]]:
    """(name, config) of each stage."""
    found = []
    for (name, module), count in zip(STAGES, (steps, long_steps), strict=True):
        config = shrunk(module.get_config()) if small else module.get_config()
        if mixers == "lightning":
            period = ("lightning",) * len(config.model.period)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, period=period))
        if count is not None:
            schedule = dataclasses.replace(config.optimizer.schedule, decay_start=max(count * 4 // 5, 1))
            schedule = dataclasses.replace(schedule, warmup_steps=min(schedule.warmup_steps, max(count // 10, 1)))
            optimizer = dataclasses.replace(config.optimizer, schedule=schedule)
            train = dataclasses.replace(config.train, steps=count, eval_every=max(count // 2, 1))
            config = dataclasses.replace(config, optimizer=optimizer, train=train)
        found.append((name, config))
    return found


def shrunk(config: Config) -> Config:
    """The same run at the size of configs/tiny.py, on documents of 512 bytes."""
    small = tiny.get_config()
    model = dataclasses.replace(small.model, rope_theta=config.model.rope_theta)
    length = 512 if config.name == "recall_small" else 1024
    train = dataclasses.replace(
        small.train, steps=40, batch_size=4, sequence_length=length, eval_every=20, eval_batches=2
    )
    data = DataConfig(source="recall:512" if length == 512 else "recall:1k", held_out=0.002)
    return dataclasses.replace(
        config, model=model, compute=small.compute, data=data, train=train, mesh=small.mesh, optimizer=small.optimizer
    )


def trained(workdir: pathlib.Path, stages: list[tuple[str, Config]]) -> dict[str, float]:
    """Seconds that each stage has taken; their runs lie in `workdir`."""
    before, seconds = None, {}
    for name, config in stages:
        began = time.monotonic()
        loop.run(config, str(workdir / name), before)
        before, seconds[name] = str(workdir / name), time.monotonic() - began
    return seconds


def evaluated(workdir: pathlib.Path, task: str, flags: tuple[str, ...]) -> dict:
    """The scores of a task, of the last stage; its table is printed."""
    out = workdir / f"{task}.json"
    if not out.exists():
        run = workdir / STAGES[-1][0]
        code = evals.main([task, f"--checkpoint={run}", f"--json={out}", f"--figure={workdir / task}.png", *flags])
        if code:
            raise SystemExit(code)
    return json.loads(out.read_text())


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.recall", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where runs, scores and figures lie")
    parser.add_argument("--mixers", choices=("hybrid", "lightning"), default="hybrid", help="what the layers are")
    parser.add_argument("--small", action="store_true", help="the size of configs/tiny.py")
    parser.add_argument("--steps", type=int, help="of the first stage (default: its config's)")
    parser.add_argument("--long-steps", type=int, help="of the second stage (default: its config's)")
    add_json(parser)
    given = parser.parse_args(argv)
    given.workdir.mkdir(parents=True, exist_ok=True)
    report, place = Report(given.json, "benchmarks.recall", argv), device()
    stages = configs(given.mixers, given.small, given.steps, given.long_steps)
    subject = f"recall {'tiny' if given.small else 'small'}, {given.mixers}"
    for name, seconds in trained(given.workdir, stages).items():
        report.add(f"{subject}, stage {name}: train", round(seconds, 1), "s", device=place)
    for task, flags in ASKED.items():
        scores = evaluated(given.workdir, task, flags[given.small])
        report.add(f"{subject}, {task}: time", round(scores["seconds"], 1), "s", device=place)
        share = scores["prefilled_tokens"] / scores["prompt_tokens"]
        report.add(f"{subject}, {task}: tokens taken in", round(share, 4), "of the prompts'", device=place)
        for cell in scores["cells"]:
            what = f"{subject}, {task} of {cell['length']:,} tokens"
            report.add(f"{what}: score", round(cell["mean"], 4), device=place)
            report.add(f"{what}: interval", [round(cell["low"], 4), round(cell["high"], 4)], "95 %", device=place)
            report.add(f"{what}: samples", cell["count"], device=place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
