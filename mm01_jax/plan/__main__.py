"""Plans a step on machines that are not here, on a CPU:

    python -m mm01_jax.plan --config=configs/text_01.py --target=v5p-1024 --step=train

Compiles the real step for the target and says what one chip holds, computes, moves and sends, and how long that takes
at least. `--no-compile` plans by shapes alone, in seconds. `--search` compares all meshes. A target other than the
config's own gets the best mesh found, unless `--mesh` gives one.

Exit codes: 0 done, 2 what was typed is wrong, or it (of a search: none) does not fit, 130 interrupted.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys

from absl import flags

from mm01_jax import command
from mm01_jax.config import Config, ConfigError, Problem, command_line, fields
from mm01_jax.plan import meshes, targets

KINDS = ("train", "prefill", "decode")
_SHOWN = 12
# No accelerator is looked for, and several plans may run at once.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_CONFIG = flags.DEFINE_string("config", None, "a .py file with get_config, or a saved config in .json")
_TARGET = flags.DEFINE_string("target", None, "a TPU slice (v5p-1024, v6e-256, v6e-256x2) or GPUs (h100-512)")
_STEP = flags.DEFINE_string("step", "train", "train, prefill or decode")
_MESH = flags.DEFINE_string("mesh", None, "sizes of mesh axes, data=8,expert=16,tensor=4; those not named are 1")
_NO_COMPILE = flags.DEFINE_bool("no-compile", False, "plan by shapes alone, in seconds")
_SEARCH = flags.DEFINE_bool("search", False, "compare all meshes of the target by shapes")
_JSON = flags.DEFINE_string("json", None, "a file for the plan's numbers")
_PNG = flags.DEFINE_string("png", None, "a file for a bar chart of the memory of one chip (extra: plots)")
_HLO = flags.DEFINE_string("hlo", None, "a file for the compiled program's text")


def main(argv: list[str]) -> int:
    return command.run(_main, argv)


def _main(argv: list[str]) -> int:
    overrides = command_line.parse_flags(argv)
    config = command_line.load(_CONFIG.value, overrides)
    command_line.require_flag("target", _TARGET.value, "a machine to plan for", "--target=v5p-1024")
    target = targets.parse(_TARGET.value)
    if _STEP.value not in KINDS:
        nearest = fields.nearest_name(_STEP.value, KINDS)
        raise ConfigError([Problem(key="--step", got=_STEP.value, allowed=", ".join(KINDS), nearest=nearest)])
    if problems := _file_problems():
        raise ConfigError(problems)
    if _MESH.value is not None:
        config = dataclasses.replace(config, mesh=meshes.parse(_MESH.value, config))
        if problems := meshes.problems(_STEP.value, config, target):
            raise ConfigError(problems)
    return _plan(config, target)


def _plan(config: Config, target: targets.Target) -> int:
    os.environ.update(_ENVIRONMENT)
    from mm01_jax.plan import planner, report, search  # jax reads the environment when it is imported

    if _SEARCH.value or meshes.problems(_STEP.value, config, target):
        candidates = search.search(_STEP.value, config, target)
        if not candidates:
            raise ConfigError(meshes.problems(_STEP.value, config, target))
        print(report.candidates(candidates, target, _SHOWN if _SEARCH.value else 1))
        if _SEARCH.value:
            return 0 if candidates[0].bytes <= target.chip.hbm else 2
        config = candidates[0].config
    plan = planner.make_plan(_STEP.value, config, target, compile_it=not _NO_COMPILE.value)
    print(report.text(plan))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(report.as_json(plan), indent=1) + "\n", encoding="utf-8")
    if _HLO.value and plan.compiled is not None:
        pathlib.Path(_HLO.value).write_text(plan.compiled.text, encoding="utf-8")
    if _PNG.value:
        report.save_chart(plan, _PNG.value)
    return 0 if plan.fits else 2


def _file_problems() -> list[Problem]:
    """What stands against writing the files asked for, said before the minutes that a plan takes."""
    problems = []
    for flag, value in (("--json", _JSON.value), ("--png", _PNG.value), ("--hlo", _HLO.value)):
        if value is None:
            continue
        folder = pathlib.Path(value).parent
        if not folder.is_dir() or pathlib.Path(value).is_dir():
            problems.append(Problem(key=flag, got=value, allowed="a file in a folder that exists", nearest=None))
        if _SEARCH.value:
            allowed = "a file of one plan; --search makes none"
            problems.append(
                Problem(key=flag, got=value, allowed=allowed, nearest="the same without --search, with --mesh")
            )
    if _HLO.value is not None and _NO_COMPILE.value:
        allowed = "a file for a compiled program; --no-compile makes none"
        problems.append(Problem(key="--hlo", got=_HLO.value, allowed=allowed, nearest="the same without --no-compile"))
    if _PNG.value is not None and pathlib.Path(_PNG.value).suffix.lower() != ".png":
        nearest = str(pathlib.Path(_PNG.value).with_suffix(".png")) if pathlib.Path(_PNG.value).name else "plan.png"
        problems.append(Problem(key="--png", got=_PNG.value, allowed="a name that ends in .png", nearest=nearest))
    if _PNG.value is not None and importlib.util.find_spec("matplotlib") is None:
        allowed = "matplotlib to be installed, which draws it"
        problems.append(Problem(key="--png", got=_PNG.value, allowed=allowed, nearest="pip install 'mm01_jax[plots]'"))
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv))
