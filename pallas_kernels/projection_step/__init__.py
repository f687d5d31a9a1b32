"""Few rows times large matrices: `projection_step`, `projection_parts` (`api.py`).

An implementation is a module with three functions; `api.py` has checked the arguments. `reference` is NumPy.

    unsupported(x_RD, matrices, layer) -> str | None       why it cannot, or None
    forward(x_RD, matrices, layer, dtype) -> y_RF          x times each matrix, side by side
    parts(x_RD, matrix_LDF, layer) -> y_PRF                float32, to be added up
"""

from pallas_kernels.projection_step.api import projection_parts, projection_step

__all__ = ["projection_parts", "projection_step"]
