"""Every mesh of tests/parallel/test_meshes.py against float64, as a table; exits 1 if one is outside its bound.

python -m benchmarks.meshes --out=benchmarks/meshes.md
"""

import argparse
import dataclasses
import functools
import pathlib
import re
import sys
import time
from collections.abc import Callable

import jax

import tests.conftest  # noqa: F401
from mm01_jax.config import MeshConfig, ModelConfig

jax.config.update("jax_num_cpu_devices", 16)

from tests.parallel.mesh_model import MODEL, evaluate, exact  # noqa: E402
from tests.parallel.test_meshes import CASES, EPS, errors, errors_of_one_device, plain  # noqa: E402

KINDS = ("logits", "loss", "statistics", "gradients")
HEAD = f"""# Meshes against float64

`python -m benchmarks.meshes --out=benchmarks/meshes.md`, jax {jax.__version__}, 16 CPU devices, float32.
Largest error over largest entry, against the same model in float64 on one device; gradients: the worst weight.
One device: the worst of eight orders of summation. A mesh may be twice as far (plus {EPS:.1e}).
Packed documents with padding in every case.

| mesh | logits | loss | router statistics | gradients | dropped | seconds |
|---|---|---|---|---|---|---|
"""


def lines(only: str) -> dict[str, Callable[[], tuple[str, bool]]]:
    """Name -> what measures the rest of its line and whether it is within the bound; one device of each model first."""
    chosen = {name: case for name, case in CASES.items() if re.search(only, name)}
    alone = {_alone(plain(model)): functools.partial(_reference, plain(model)) for _, model in chosen.values()}
    return alone | {name: functools.partial(_case, *case) for name, case in chosen.items()}


def _alone(model: ModelConfig) -> str:
    changed = [f.name for f in dataclasses.fields(model) if getattr(model, f.name) != getattr(MODEL, f.name)]
    return "**one device" + "".join(f", {name} {getattr(model, name)}" for name in changed) + "**"


def _reference(model: ModelConfig) -> tuple[str, bool]:
    return f"{_numbers(errors_of_one_device(model))} | | |", True


def _case(mesh: MeshConfig, model: ModelConfig) -> tuple[str, bool]:
    start = time.monotonic()
    found = evaluate(mesh, model)
    apart, alone = errors(found, exact(plain(model))), errors_of_one_device(plain(model))
    good = all(apart[kind] <= 2 * alone[kind] + EPS for kind in KINDS)
    dropped, seconds = int(found.stats["dropped"].sum()), time.monotonic() - start
    return f"{_numbers(apart)} | {dropped} | {seconds:.0f} |{'' if good else ' **OUTSIDE**'}", good


def _numbers(found: dict[str, float]) -> str:
    return " | ".join(f"{found[kind]:.1e}" for kind in KINDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="", help="a pattern: measure these cases, keep the other lines of the table")
    args = parser.parse_args()
    kept = dict(re.findall(r"^\| (.+?) \| (.*)$", args.out.read_text(), re.MULTILINE) if args.only else ())
    good = True
    for name, measure in lines(args.only).items():
        kept[name], within = measure()
        print(f"| {name} | {kept[name]}", flush=True)
        order = [name for name in lines("") if name in kept]
        args.out.write_text(HEAD + "".join(f"| {name} | {kept[name]}\n" for name in order))
        good &= within
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
