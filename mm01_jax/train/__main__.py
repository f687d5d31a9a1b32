"""mm01-train: trains a model, or goes on with a run that stopped.

  mm01-train --config=tiny --workdir=runs/tiny --config.train.steps=600
  mm01-train --config=mine.py --dry-run

In a checkout `python train_main.py` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 4 too many refused (non-finite) steps, 74 the
last step could not be saved, 75 preempted after saving, 130 interrupted.
"""

import sys
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.arguments import Flag
from mm01_jax.config import command_line, saved

COMMAND = arguments.Command(
    name="mm01-train",
    doc=__doc__,
    flags=(
        arguments.CONFIG,
        Flag("workdir", "the run's folder: checkpoints, metrics, config; an old run resumes", example="DIR"),
        Flag("init_from", "a run or checkpoint whose weights a new run starts from; its parts: DIR,DIR", example="DIR"),
        Flag("dry_run", "check the config, print it whole, stop", bool, default=False),
        arguments.COMPILE_CACHE,
    ),
    takes_overrides=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(_train, argv, name=COMMAND.name)


def _train(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    config = command_line.load_config(given.config, given.overrides)
    if given.dry_run:
        print(saved.to_json(config), end="")
        return
    if not given.workdir:
        raise arguments.refused("--workdir", "nothing", "a folder for this run", f"--workdir=runs/{config.name}")
    from mm01_jax import cluster
    from mm01_jax.train import loop  # only now: importing jax takes longer than refusing a config may

    if given.compile_cache:
        compile_cache.use()
    cluster.join()
    loop.run(config, given.workdir, given.init_from)


if __name__ == "__main__":
    sys.exit(main())
