"""Every mesh of tests/sharding/test_meshes.py against float64, as a table; exits 1 if one is outside its bound.

python -m benchmarks.meshes --out=benchmarks/meshes.md
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import jax

import tests.conftest  # noqa: F401
from mm01_jax.config import MeshConfig, ModelConfig

jax.config.update("jax_num_cpu_devices", 16)

from tests.sharding.mesh_model import evaluate, exact  # noqa: E402
from tests.sharding.test_meshes import CASES, EPS, errors  # noqa: E402

KINDS = ("logits", "loss", "statistics", "gradients")
HEAD = f"""# Meshes against float64

`python -m benchmarks.meshes --out=benchmarks/meshes.md`, jax {jax.__version__}, 16 CPU devices, float32.
Largest error over largest entry, against the same model in float64 on one device; gradients: the worst weight.
A mesh may be at most twice as far as one device (plus {EPS:.1e}). Packed documents with padding in every case.

| mesh | logits | loss | router statistics | gradients | dropped | seconds | |
|---|---|---|---|---|---|---|---|
"""


def rows():
    """(line, within the bound) of each case, one device first for each model."""
    alone: dict[ModelConfig, dict[str, float]] = {}
    for name, (mesh, model) in CASES.items():
        plain = dataclasses.replace(model, exchange_groups=1, dropless_bound=None, sequence_attention="gather")
        if plain not in alone:
            alone[plain], line, _ = _measure("one device", MeshConfig(), plain, plain, None)
            yield line, True
        _, line, good = _measure(name, mesh, model, plain, alone[plain])
        yield line, good


def _measure(name: str, mesh: MeshConfig, model: ModelConfig, plain: ModelConfig, alone: dict[str, float] | None):
    true, start = exact(plain), time.monotonic()
    found = evaluate(mesh, model)
    seconds, found_errors = time.monotonic() - start, errors(found, true)
    good = alone is None or all(found_errors[kind] <= 2 * alone[kind] + EPS for kind in KINDS)
    numbers = " | ".join(f"{found_errors[kind]:.1e}" for kind in KINDS)
    dropped = int(found.stats["dropped"].sum())
    return found_errors, f"| {name} | {numbers} | {dropped} | {seconds:.0f} | {'' if good else 'OUTSIDE'} |", good


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
