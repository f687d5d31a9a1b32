"""Trains a model: python train_main.py --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=600

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 4 too many refused (non-finite) steps, 74 the
last step could not be saved, 75 preempted after saving, 130 interrupted.
"""

import sys

from absl import flags

from mm01_jax import command
from mm01_jax.config import command_line, saved

_CONFIG = flags.DEFINE_string("config", None, "a .py file with get_config, or a saved config in .json")
_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder: checkpoints, metrics, config; an old run resumes")
_INIT_FROM = flags.DEFINE_string("init_from", None, "a run or checkpoint whose weights a new run starts from")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "check the config, print it whole, stop")


def main(argv: list[str]) -> int:
    return command.run(_train, argv)


def _train(argv: list[str]) -> None:
    overrides = command_line.parse_flags(argv)
    config = command_line.load(_CONFIG.value, overrides)
    if _DRY_RUN.value:
        print(saved.to_json(config), end="")
        return
    command_line.require_flag("workdir", _WORKDIR.value, "a folder for this run", f"--workdir=runs/{config.name}")
    from mm01_jax.train import cluster, loop  # only now: importing jax takes longer than refusing a config may

    cluster.join()
    loop.run(config, _WORKDIR.value, _INIT_FROM.value)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
