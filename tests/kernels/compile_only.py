"""A mesh of one TPU that is not here, to compile kernels for."""

import functools
import os

import numpy as np
from jax.sharding import AxisType, Mesh

from mm01_jax.plan import compiler, targets

TARGETS = {"v5e": "v5e-4", "v5p": "v5p-8", "v6e": "v6e-4"}  # the smallest that have a name


@functools.cache
def mesh_of(generation: str) -> Mesh:
    """libtpu must be told that there is no TPU before it is loaded, so this comes before any other use of it."""
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    chips = compiler.devices(targets.parse(TARGETS[generation]))
    return Mesh(np.array(chips[:1]), ("chip",), axis_types=(AxisType.Auto,))
