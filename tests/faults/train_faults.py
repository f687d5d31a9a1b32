"""Kills a training run with SIGKILL at random moments, resumes it, and compares it with a run that was never killed.

    python -m tests.faults.train_faults [--count=12] [--seed=0] [--steps=120] [--every=2]

Prints one table row for each kill (tests/faults/train_faults.md). Three of four kills come at a random moment of
training, most of them while a checkpoint is being written (a step is far shorter than a save here); the fourth comes
while the process starts or restores. After each kill every loss in metrics.jsonl must be the uninterrupted run's, bit
for bit; in the end so must be the digest of the last checkpoint: weights, moments, counters. Exit code 1 if anything
differs.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time

import numpy as np

from configs import tiny
from mm01_jax.config import saved
from tests.command_line import Parser, whole

ROOT = pathlib.Path(__file__).parents[2]
MODULES = ("argparse", "ast", "bisect", "calendar", "copy", "csv", "dis", "enum", "heapq", "inspect", "queue", "random")
MARGIN = 8  # steps that may pass between the decision to kill and the kill
WAIT_SECONDS = 1800.0  # for a step to come; more than any process needs, however loaded the machine
HEADER = ("kill", "came", "last loss of step", "a save half done", "resumed from", "losses as uninterrupted")


@dataclasses.dataclass
class Kill:
    """One row of the table; `resumed` is filled in by the process after it."""

    number: int
    came: str
    last_step: int
    in_save: bool
    losses_equal: bool
    resumed: str = "the start"

    def row(self) -> str:
        saving, equal = ("yes" if self.in_save else "no"), ("yes" if self.losses_equal else "NO")
        return f"| {self.number} | {self.came} | {self.last_step} | {saving} | {self.resumed} | {equal} |"


class Runs:
    """The commands of one experiment: a small config and a small text in `folder`."""

    def __init__(self, folder: pathlib.Path, steps: int, every: int, cache: str | None = None):
        self.folder, self.steps = folder, steps
        text = folder / "text"
        text.mkdir(parents=True)
        for name in MODULES:
            (text / f"{name}.txt").write_bytes((pathlib.Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_bytes())
        config = tiny.get_config()
        model = dataclasses.replace(
            config.model, embed_dim=16, num_periods=1, period=("lightning", "softmax"), head_dim=8, rotary_dim=4
        )
        model = dataclasses.replace(model, num_heads=2, num_kv_heads=1, expert_dim=16)
        train = dataclasses.replace(
            config.train, steps=steps, batch_size=2, sequence_length=32, checkpoint_every=every, eval_every=steps
        )
        data = dataclasses.replace(config.data, source=str(text), held_out=0.1)
        config = dataclasses.replace(config, name="faults", model=model, train=train, data=data)
        self.config = folder / "config.json"
        self.config.write_text(saved.to_json(config))
        cache = cache or str(folder / "cache")
        self.environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "PYTHONUNBUFFERED": "1",  # what a killed process said must be in its log
        }

    def start(self, name: str) -> subprocess.Popen:
        """`train_main.py` on the work directory `name`; what it says is added to `name`.log."""
        command = [sys.executable, "train_main.py", f"--config={self.config}", f"--workdir={self.folder / name}"]
        with open(self.folder / f"{name}.log", "a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, name: str, seconds: float = WAIT_SECONDS) -> None:
        """Runs `name` to its end."""
        code = self.start(name).wait(timeout=seconds)
        if code:
            raise RuntimeError(f"run {name} ended with exit code {code}: {self.said(name)[-2000:]}")

    def said(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def losses(self, name: str) -> dict[int, float]:
        """Step -> loss of every whole line of metrics.jsonl; a step that occurs twice is an error."""
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        records = [json.loads(line) for line in lines]
        found = {record["step"]: record["loss"] for record in records}
        if len(found) != len(records):
            raise RuntimeError(f"{path}: a step occurs twice")
        return found

    def digest(self, name: str) -> str:
        """tree_sha256 of the last step's manifest."""
        manifest = self.folder / name / "checkpoints" / f"{self.steps:08d}" / "state" / "manifest.json"
        return json.loads(manifest.read_text())["tree_sha256"]

    def half_saved(self, name: str) -> bool:
        return any((self.folder / name / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill_and_resume(runs: Runs, kills: int, seed: int) -> tuple[list[Kill], bool]:
    """Rows of the table, and whether all losses and the last digest are the uninterrupted run's."""
    random = np.random.default_rng(seed)
    if max(runs.losses("whole"), default=0) < runs.steps:
        runs.finish("whole")
    whole, rows = runs.losses("whole"), []
    for number in range(1, kills + 1):
        before = len(runs.said("killed"))
        process = runs.start("killed")
        came = _wait(runs, process, random, number, kills)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break  # it reached its end first
        _note_resumed(rows, runs.said("killed")[before:])
        found = runs.losses("killed")
        equal = all(whole[step] == loss for step, loss in found.items())
        print(f"kill {number} of {kills} came {came}", file=sys.stderr, flush=True)
        rows.append(Kill(number, came, max(found, default=0), runs.half_saved("killed"), equal))
    before = len(runs.said("killed"))
    runs.finish("killed")
    _note_resumed(rows, runs.said("killed")[before:])
    equal = runs.losses("killed") == whole and runs.digest("killed") == runs.digest("whole")
    return rows, equal and all(row.losses_equal for row in rows)


def _wait(runs: Runs, process, random, number: int, kills: int) -> str:
    """Waits for the moment of a kill and names it."""
    done = max(runs.losses("killed"), default=0)
    if number % 4 == 0:
        seconds = random.uniform(0.0, 6.0)
        time.sleep(seconds)
        return f"{seconds:.1f} s after the process began"
    # Somewhere in the share of the run that leaves room for the kills to come.
    room = max(1, (runs.steps - done) // (kills - number + 1) - MARGIN)
    target, deadline = done + int(random.integers(1, room + 1)), time.monotonic() + WAIT_SECONDS
    while max(runs.losses("killed"), default=0) < target and process.poll() is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"step {target} did not come: {runs.said('killed')[-2000:]}")
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.1))
    return f"after step {target}"


def _note_resumed(rows: list[Kill], said: str) -> None:
    """What the process that came after the last kill said it resumed from."""
    for row in reversed(rows):
        if row.resumed != "the start":
            break
        found = [line for line in said.splitlines() if line.startswith("resumed from")]
        row.resumed = found[0].removeprefix("resumed from ").split(" (")[0] if found else row.resumed
        break


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tests.faults.train_faults", __doc__)
    parser.add_argument("--count", type=whole(1), default=12, help="kills")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--steps", type=whole(1), default=120, help="of the run")
    parser.add_argument("--every", type=whole(1), default=2, help="steps between checkpoints")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(pathlib.Path(folder) / "runs", arguments.steps, arguments.every)
        print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
        rows, equal = kill_and_resume(runs, arguments.count, arguments.seed)
        print("\n".join(row.row() for row in rows))
        verdict = "equal to" if equal else "NOT"
        print(f"\n{len(rows)} kills; last digest {runs.digest('killed')[:16]}, {verdict} the uninterrupted run's")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
