"""mm01-plan: plans a step on machines that are not here, on a CPU (docs/plans.md).

  mm01-plan --config=text_01 --target=v5p-1024 --step=train
  mm01-plan --config=tiny --target=h100-8 --no-compile
  mm01-plan --config=text_01_decode_1m --target=v6e-64 --step=decode --mesh=expert=8,tensor=8

Compiles the real step for the target and says what one chip holds, computes, moves and sends, and how long that takes
at least. `--no-compile` plans by shapes alone, in seconds. `--search` compares all meshes. A target other than the
config's own gets the best mesh found, unless `--mesh` gives one. `python -m mm01_jax.plan` is the same.

Exit codes: 0 done, 2 what was typed is wrong, or it (of a search: none) does not fit, 74 a full or
broken disk, 130 interrupted.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import types
from collections.abc import Sequence

from mm01_jax import arguments, command, files
from mm01_jax.config import Config, ConfigError, Problem, command_line, mesh_sizes
from mm01_jax.flag import Command, Flag
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

COMMAND = Command(
    name="mm01-plan",
    doc=__doc__,
    flags=(
        arguments.CONFIG,
        Flag(
            "target",
            "a machine to plan for: a TPU slice (v5p-1024, v6e-256, v6e-256x2) or GPUs (h100-512, h200-16)",
            example="v5p-1024",
            required=True,
        ),
        Flag("step", "what to plan", KINDS, default="train"),
        Flag("mesh", "sizes of mesh axes; those not named are 1", example="data=8,expert=16,tensor=4"),
        Flag("no_compile", "plan by shapes alone, in seconds", bool, default=False),
        Flag("search", "compare all meshes of the target by shapes", bool, default=False),
        Flag("json", "a file for the plan's numbers", example="FILE", writes=True),
        Flag("png", "a file for a bar chart of the memory of one chip (extra: plots)", example="FILE", writes=True),
        Flag("hlo", "a file for the compiled program's text", example="FILE", writes=True),
    ),
    takes_overrides=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(_main, argv, name=COMMAND.name)


def _main(argv: Sequence[str]) -> int:
    given = arguments.read(COMMAND, argv)
    config = command_line.load_config(given.config, given.overrides)
    target = targets.parse(given.target)
    if problems := _file_problems(given):
        raise ConfigError(problems)
    if given.mesh is not None:
        config = dataclasses.replace(config, mesh=mesh_sizes.parse(given.mesh, config.mesh))
        if problems := meshes.problems(given.step, config, target):
            raise ConfigError(problems)
    return _plan(given, config, target)


def _plan(given: types.SimpleNamespace, config: Config, target: targets.Target) -> int:
    os.environ.update(_ENVIRONMENT)
    from mm01_jax.plan import planner, report, search  # jax reads the environment when it is imported

    if given.search or meshes.problems(given.step, config, target):
        candidates = search.search(given.step, config, target)
        if not candidates:
            raise ConfigError(meshes.problems(given.step, config, target))
        print(report.candidates(candidates, target, _SHOWN if given.search else 1))
        if given.search:
            return 0 if candidates[0].bytes <= target.chip.hbm else 2
        config = candidates[0].config
    plan = planner.make_plan(given.step, config, target, compile_it=not given.no_compile)
    print(report.text(plan))
    if given.json:
        files.write(given.json, f"{json.dumps(report.as_json(plan), indent=1)}\n".encode())
    if given.hlo and plan.compiled is not None:
        files.write(given.hlo, plan.compiled.text.encode())
    if given.png:
        report.save_chart(plan, given.png)
    return 0 if plan.fits else 2


def _file_problems(given: types.SimpleNamespace) -> list[Problem]:
    """What stands against writing the files asked for, said before the minutes that a plan takes."""
    problems = []
    for flag, value in (("--json", given.json), ("--png", given.png), ("--hlo", given.hlo)):
        if value is None:
            continue
        if given.search:
            allowed = "a file of one plan; --search makes none"
            problems.append(
                Problem(key=flag, got=value, allowed=allowed, nearest="the same without --search, with --mesh")
            )
    if given.hlo is not None and given.no_compile:
        allowed = "a file for a compiled program; --no-compile makes none"
        problems.append(Problem(key="--hlo", got=given.hlo, allowed=allowed, nearest="the same without --no-compile"))
    if given.png is not None and pathlib.Path(given.png).suffix.lower() != ".png":
        nearest = str(pathlib.Path(given.png).with_suffix(".png")) if pathlib.Path(given.png).name else "plan.png"
        problems.append(Problem(key="--png", got=given.png, allowed="a name that ends in .png", nearest=nearest))
    if given.png is not None and importlib.util.find_spec("matplotlib") is None:
        allowed = "matplotlib to be installed, which draws it"
        problems.append(Problem(key="--png", got=given.png, allowed=allowed, nearest="pip install 'mm01_jax[plots]'"))
    return problems


if __name__ == "__main__":
    sys.exit(main())
