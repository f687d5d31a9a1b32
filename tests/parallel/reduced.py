"""Gradients of the small model on a mesh, their sums over devices in bfloat16 and in float32, against float64."""

import functools

import numpy as np

import tests.conftest  # noqa: F401
from mm01_jax.config import MeshConfig
from tests.parallel.mesh_model import VARIANT, Evaluation, evaluate, exact

VARIANTS = {
    "bfloat16": VARIANT.replace(dtype="bfloat16"),
    "float32": VARIANT.replace(dtype="bfloat16", reduce_dtype="float32"),
}


@functools.cache
def found(mesh: MeshConfig, reduce_dtype: str) -> Evaluation:
    return evaluate(mesh, VARIANTS[reduce_dtype])


def apart(one: Evaluation, other: Evaluation) -> float:
    """The norm of all gradients' difference, of the norm of the other's."""
    norm = lambda arrays: np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays))  # noqa: E731
    names = other.gradients
    return float(norm(one.gradients[n] - other.gradients[n] for n in names) / norm(other.gradients.values()))


def measured(sizes: dict[str, int]) -> dict[str, float]:
    """The error of both, and how far they are from each other."""
    mesh = MeshConfig(**sizes)
    narrow, wide = found(mesh, "bfloat16"), found(mesh, "float32")
    return {
        "error, bfloat16": apart(narrow, exact()),
        "error, float32": apart(wide, exact()),
        "apart": apart(narrow, wide),
    }
