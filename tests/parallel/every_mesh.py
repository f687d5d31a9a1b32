"""Every mesh of tests/parallel/test_meshes.py against float64, on 16 CPU devices; exits 1 if one is outside its bound.

python -m tests.parallel.every_mesh [--only=PATTERN]
"""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

import tests.conftest  # noqa: F401
from tests.command_line import Parser, refusal
from tests.parallel.mesh_model import VARIANT, evaluate, exact
from tests.parallel.test_meshes import CASES, EPS, errors, errors_of_one_device, plain
from tests.small import Variant

KINDS = ("logits", "loss", "statistics", "gradients")


class Line(NamedTuple):
    """One mesh, or one device (`dropped` and `seconds` are None): the errors of `KINDS`, and whether they may be so."""

    name: str
    errors: dict[str, float]
    dropped: int | None = None
    seconds: float | None = None
    within: bool = True


def matching(only: str) -> dict:
    """The cases whose names match a pattern.

    Raises:
      argparse.ArgumentTypeError: none does, or it is no pattern.
    """
    try:
        chosen = {name: case for name, case in CASES.items() if re.search(only, name)}
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{only!r} is no pattern: {error}") from None
    if not chosen:
        raise argparse.ArgumentTypeError(refusal("mesh", only, CASES))
    return chosen


def measure(chosen: dict) -> Iterator[Line]:
    """One device of each model first, then the meshes whose names match. 16 devices must be there."""
    for variant in {_alone(plain(variant)): plain(variant) for _, variant in chosen.values()}.values():
        yield Line(_alone(variant), errors_of_one_device(variant))
    for name, (mesh, variant) in chosen.items():
        start = time.monotonic()
        found, reference = evaluate(mesh, variant), plain(variant)
        apart, alone = errors(found, exact(reference)), errors_of_one_device(reference)
        within = all(apart[kind] <= 2 * alone[kind] + EPS for kind in KINDS)
        yield Line(name, apart, int(found.stats["dropped"].sum()), time.monotonic() - start, within)


def _alone(variant: Variant) -> str:
    changed = [
        f", {field.name} {getattr(section, field.name)}"
        for section, usual in zip(variant, VARIANT, strict=True)
        for field in dataclasses.fields(section)
        if getattr(section, field.name) != getattr(usual, field.name)
    ]
    return "one device" + "".join(changed)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tests.parallel.every_mesh", __doc__)
    parser.add_argument("--only", default="", type=matching, metavar="PATTERN", help="these meshes")
    chosen, good = parser.parse_args(argv).only, True
    jax.config.update("jax_num_cpu_devices", 16)
    for line in measure(chosen):
        numbers = " ".join(f"{kind} {line.errors[kind]:.1e}" for kind in KINDS)
        print(f"{line.name}: {numbers}{'' if line.within else ' OUTSIDE'}", flush=True)
        good &= line.within
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
