"""Every mesh of tests/sharding/test_meshes.py against float64, as a table; exits 1 if one is outside its bound.

python -m benchmarks.meshes --out=benchmarks/meshes.md
"""

import argparse
import pathlib
import sys
import time

import jax

import tests.conftest  # noqa: F401
from mm01_jax.config import ModelConfig

jax.config.update("jax_num_cpu_devices", 16)

from tests.sharding.mesh_model import evaluate, exact  # noqa: E402
from tests.sharding.test_meshes import CASES, EPS, errors, errors_of_one_device, plain  # noqa: E402

KINDS = ("logits", "loss", "statistics", "gradients")
HEAD = f"""# Meshes against float64

`python -m benchmarks.meshes --out=benchmarks/meshes.md`, jax {jax.__version__}, 16 CPU devices, float32.
Largest error over largest entry, against the same model in float64 on one device; gradients: the worst weight.
One device: the worst of eight orders of summation. A mesh may be twice as far (plus {EPS:.1e}).
Packed documents with padding in every case.

| mesh | logits | loss | router statistics | gradients | dropped | seconds |
|---|---|---|---|---|---|---|
"""


def rows():
    """(line, within the bound) of each case, one device first for each model."""
    done: set[ModelConfig] = set()
    for name, (mesh, model) in CASES.items():
        reference = plain(model)
        alone = errors_of_one_device(reference)
        if reference not in done:
            done.add(reference)
            yield f"| **one device** | {_numbers(alone)} | | |", True
        start = time.monotonic()
        found = evaluate(mesh, model)
        apart = errors(found, exact(reference))
        good = all(apart[kind] <= 2 * alone[kind] + EPS for kind in KINDS)
        dropped, seconds = int(found.stats["dropped"].sum()), time.monotonic() - start
        yield f"| {name}{'' if good else ' **OUTSIDE**'} | {_numbers(apart)} | {dropped} | {seconds:.0f} |", good


def _numbers(found: dict[str, float]) -> str:
    return " | ".join(f"{found[kind]:.1e}" for kind in KINDS)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out, good = parser.parse_args().out, True
    out.write_text(HEAD)
    for line, within in rows():
        print(line, flush=True)
        with out.open("a") as file:
            file.write(line + "\n")
        good &= within
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
