"""Evaluates a checkpoint: python -m mm01_jax.evals TASK --checkpoint=runs/tiny

Tasks:
  perplexity   how well it predicts the run's held-out text, or all of --source

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 130 interrupted.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from mm01_jax import command, sharding
from mm01_jax.config import MeshConfig, fields
from mm01_jax.evals.perplexity import perplexity
from mm01_jax.loading import Loaded, load

# Name -> what is asked of a loaded model, given the flags; what comes back is printed.
TASKS: dict[str, Callable[[Loaded, flags.FlagValues], Any]] = {
    "perplexity": lambda loaded, options: perplexity(loaded.model, loaded.config, options.source),
}


def main(argv: list[str]) -> int:
    return command.run(_evaluate, argv)


def _options() -> flags.FlagValues:
    options = flags.FlagValues()
    checkpoint = "a run's work directory, one of its steps, or a conversion"
    flags.DEFINE_string("checkpoint", None, checkpoint, flag_values=options)
    flags.DEFINE_string("source", None, "text to score instead of the run's held-out split", flag_values=options)
    return options


def _evaluate(argv: list[str]) -> None:
    options = _options()
    if "--help" in argv:
        print(__doc__, options.get_help(), sep="\n")
        return
    tasks = options(argv)[1:]
    if len(tasks) != 1 or tasks[0] not in TASKS:
        got, known = " ".join(tasks) or "no task", ", ".join(TASKS)
        nearest = fields.nearest_name(got, TASKS) or next(iter(TASKS))
        raise ValueError(f"task: got {got}; allowed: one of {known}; nearest: {nearest}")
    if not options.checkpoint:
        raise ValueError(f"--checkpoint is missing; e.g. {tasks[0]} --checkpoint=runs/tiny")
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        found = TASKS[tasks[0]](load(options.checkpoint), options)
    print(f"\n{found}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
