"""Trains a model: python train_main.py --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=600

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 4 non-finite training, 75 preempted and saved.
"""

import sys

from absl import flags

from mm01_jax.config import ConfigError, command_line, saved

_CONFIG = flags.DEFINE_string("config", None, "a .py file with get_config, or a saved config in .json")
_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder: checkpoints, metrics, config; an old run resumes")
_INIT_FROM = flags.DEFINE_string("init_from", None, "a run or checkpoint whose weights a new run starts from")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "check the config, print it whole, stop")


def main(argv: list[str]) -> int:
    try:
        overrides = command_line.parse_flags(argv)
        config = command_line.load(_CONFIG.value, overrides)
        if _DRY_RUN.value:
            print(saved.to_json(config), end="")
            return 0
        command_line.require_flag("workdir", _WORKDIR.value, "a folder for this run", f"--workdir=runs/{config.name}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    from mm01_jax.train import cluster, loop  # only now: importing jax takes longer than refusing a config may

    cluster.join()
    return loop.main(config, _WORKDIR.value, _INIT_FROM.value)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
