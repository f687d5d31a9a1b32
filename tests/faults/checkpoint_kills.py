"""Kills a process that saves without pause, at random moments, and checks every step it leaves behind.

    python -m tests.faults.checkpoint_kills [--count=30] [--seed=0]

The writer keeps two steps, so the kill falls into a save, a commit, a retirement or a deletion. After each kill every
listed step must restore to the bits that its number determines, and no committed step newer than the last two may be
lost. The next writer starts in the same directory.
"""

import argparse
import collections
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests.command_line import Parser, whole

SHAPES = {
    "embed": ((4096, 128), (None, None)),
    "stacks/0/mixer/qkv": ((2, 4, 128, 384), (None, None, None, None)),
    "stacks/0/experts/gate": ((2, 4, 4, 128, 128), (None,) * 5),
}
KEEP = 2


def state_of(step: int):
    """The state whose bits the number of the step determines."""
    from tests.checkpoint.standin import make_mesh, make_state

    return make_state(make_mesh(1, 1, 1, 1), seed=step, shapes=SHAPES)


def write_forever(workdir: pathlib.Path) -> None:
    """Resumes from the newest step and saves the following ones until killed; prints each committed step."""
    from mm01_jax import checkpoint
    from tests.checkpoint.standin import META, abstract

    with checkpoint.Checkpoints(workdir, keep=KEEP, log=lambda text: print(text, file=sys.stderr)) as checkpoints:
        restored = checkpoints.restore_latest(abstract(state_of(0)))
        first = 0 if restored is None else restored.step + 1
        states = [state_of(first + n) for n in range(8)]
        for step in itertools.count(first):  # the first one compiles: the parent's clock starts behind it
            checkpoints.save(step, states[step - first] if step - first < 8 else state_of(step), META)
            checkpoints.wait()
            print(step, flush=True)


def kill_once(workdir: pathlib.Path, delay: float) -> tuple[int, collections.Counter]:
    """Starts a writer, kills it `delay` seconds after its first commit: (last committed step, what was left)."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-m", "tests.faults.checkpoint_kills", "--child", str(workdir)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    first = child.stdout.readline()
    time.sleep(delay)
    child.kill()
    committed = [int(line) for line in (first + child.communicate()[0]).split()]
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    left = collections.Counter(
        {
            "in a save": any("orbax-checkpoint-tmp" in name for name in names),
            "in a deletion": any((workdir / "checkpoints/retired").glob("*")),
        }
    )
    return committed[-1], left


def check(workdir: pathlib.Path, committed: int) -> collections.Counter:
    """Restores every listed step and compares its bits."""
    from mm01_jax import checkpoint
    from mm01_jax.checkpoint.reader import list_steps
    from tests.checkpoint.standin import abstract, bits

    found, steps = collections.Counter(), list_steps(workdir / "checkpoints")
    for step, path in steps:
        expected = state_of(step)
        try:
            restored = checkpoint.open_checkpoint(path, prefix="").restore(abstract(expected))
            found["right" if bits(restored) == bits(expected) else "wrong"] += 1
        except checkpoint.CheckpointError as error:
            print(error)
            found["unreadable"] += 1
    found["lost"] += int(not steps or steps[-1][0] < committed)
    return found


def count(kills: int, seed: int, workdir: pathlib.Path) -> collections.Counter:
    """Totals over `kills` kills: where they fell, and the steps they left."""
    random, total = np.random.default_rng(seed), collections.Counter()
    for number in range(kills):
        print(f"kill {number + 1} of {kills} ...", file=sys.stderr, flush=True)
        committed, left = kill_once(workdir, delay=float(random.uniform(0, 1.5)))
        total += left + check(workdir, committed) + collections.Counter(kills=1)
    return total


def as_text(total: collections.Counter) -> str:
    """The totals as a Markdown table."""
    columns = ("kills", "in a save", "in a deletion", "right", "wrong", "unreadable", "lost")
    titles = "kills | of these in a save | in a deletion | steps restored right | wrong | unreadable | lost"
    return f"| {titles} |\n|{' --- |' * len(columns)}\n| " + " | ".join(str(total[c]) for c in columns) + " |"


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tests.faults.checkpoint_kills", __doc__)
    parser.add_argument("--count", type=whole(1), default=30, help="kills")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        write_forever(arguments.child)
    workdir = pathlib.Path(tempfile.mkdtemp())
    try:
        total = count(arguments.count, arguments.seed, workdir)
    finally:
        shutil.rmtree(workdir)
    print(as_text(total))
    return 1 if total["wrong"] or total["unreadable"] or total["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
