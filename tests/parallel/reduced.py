"""Gradients of the small model in bfloat16 on a mesh, their sums over devices in bfloat16 and in float32."""

import functools

import numpy as np

import tests.conftest  # noqa: F401
from mm01_jax.config import MeshConfig
from tests.parallel.mesh_model import VARIANT, Evaluation, evaluate

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
    return float(norm(one.gradients[name] - other.gradients[name] for name in names) / norm(names.values()))
