"""mm01-train: trains a model, or goes on with a run that stopped.

  mm01-train --config=tiny --workdir=runs/tiny --config.train.steps=600
  mm01-train --config=mine.py --dry-run

In a checkout `python train_main.py` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 4 too many refused (non-finite) steps, 74 a
full or broken disk, 75 preempted after saving, 130 interrupted.
"""

import signal
import sys
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.config import command_line, fields, saved
from mm01_jax.flag import Command, Flag
from mm01_jax.train import folder

SAVE_ON = ("USR1", "USR2")  # what launchers send to say that time is nearly up

COMMAND = Command(
    name="mm01-train",
    doc=__doc__,
    flags=(
        arguments.CONFIG,
        Flag("workdir", "the run's folder: checkpoints, metrics, config; an old run resumes", example="DIR"),
        Flag("init_from", "a run or checkpoint whose weights a new run starts from; its parts: DIR,DIR", example="DIR"),
        arguments.ALLOW_NONFINITE._replace(
            words="let --init-from, and so the run's steps, have NaN and infinity: in frozen parts"
        ),
        Flag("save_on", "signals that save and end the run besides TERM, HUP and Ctrl-C", example="USR1,USR2"),
        Flag("dry_run", "check the config, print it whole, stop", bool, default=False),
        arguments.COMPILE_CACHE,
    ),
    takes_overrides=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    advice = "interrupted before the first step, or after the last was saved; the same command goes on"
    return command.run(_train, argv, name=COMMAND.name, interrupted=advice)


def _train(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    config = command_line.load_config(given.config, given.overrides, trained=True)
    untouched = "jax" not in sys.modules  # no config has changed what will be traced
    save_on = _signals(given.save_on)
    if given.dry_run:
        print(saved.to_json(config), end="")
        return
    if not given.workdir:
        raise arguments.refused("--workdir", "nothing", "a folder for this run", f"--workdir=runs/{config.name}")
    folder.check(given.workdir)
    with command.importing():
        from mm01_jax import cluster
        from mm01_jax.train import loop  # only now: importing jax takes longer than refusing a config may
    if given.compile_cache:
        compile_cache.use()
    cluster.join(saves=True)
    with command.going_on_without_a_reader():
        options = {"allow_nonfinite": given.allow_nonfinite, "save_on": save_on}
        options["keeps_program"] = given.compile_cache and untouched
        loop.run(config, given.workdir, given.init_from, **options)


def _signals(names: str | None) -> list[signal.Signals]:
    """Those of "USR1,SIGUSR2"."""
    found = []
    for name in names.split(",") if names else ():
        name = name.strip().upper().removeprefix("SIG")
        if name not in SAVE_ON:
            nearest = fields.nearest_name(name, SAVE_ON) or SAVE_ON[0]
            raise arguments.refused("--save-on", names, f"some of {', '.join(SAVE_ON)}", f"--save-on={nearest}")
        found.append(signal.Signals[f"SIG{name}"])
    return found


if __name__ == "__main__":
    sys.exit(main())
