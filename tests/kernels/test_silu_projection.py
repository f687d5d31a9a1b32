"""A product and its SiLU against NumPy float64.

Bound: the error is at most twice that of plain XLA, which rounds both.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import gpu_tiles
from pallas_kernels.silu_projection import gpu, reference, silu_projection, xla

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")


def _arrays(R, D, F, dtype):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(R, D)), dtype), jnp.asarray(4 * rng.normal(size=(D, F)) / D**0.5, dtype)


def _error(found, exact):
    return np.abs(np.asarray(found, np.float64) - exact).max()


def test_a_products_silu_by_xla_equals_float64():
    x, weight = _arrays(7, 40, 24, "float32")
    exact = reference.forward(x, weight)
    size = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight, np.float64))
    assert _error(silu_projection(x, weight), exact) <= (40 + 8) * 2.0**-24 * size.max()


def test_a_products_silu_by_the_gpu_interpreted_is_no_worse_than_xla(monkeypatch):
    monkeypatch.setattr(gpu_tiles, "MULTIPROCESSORS", 3)  # a program has several items
    arrays = _arrays(256, 128, 512, "bfloat16")
    exact = reference.forward(*arrays)
    allowed = _error(xla.forward(*arrays), exact)
    with plgpu.force_gpu_interpret_mode():
        found = jax.block_until_ready(jax.jit(gpu.forward)(*arrays))
    assert _error(found, exact) <= 2 * allowed


def test_the_kernel_is_chosen_where_it_fits():
    mesh = AbstractMesh((1,), ("chip",), (AxisType.Auto,), abstract_device=H200)
    with use_abstract_mesh(mesh):
        lowered = (
            jax.jit(silu_projection).trace(*_arrays(128, 128, 256, "bfloat16")).lower(lowering_platforms=("cuda",))
        )
        assert "mosaic_gpu" in lowered.as_text()
        assert "multiples of 128" in gpu.unsupported(*_arrays(120, 128, 256, "bfloat16"))
    with pytest.raises(dispatch.Unsupported, match="needs a GPU"):
        silu_projection(*_arrays(128, 128, 256, "bfloat16"), implementation="gpu")


def test_widths_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match=r"weight must be float32\[40, F\] to go with x, got float32\[24, 40\]"):
        silu_projection(jnp.zeros((7, 40)), jnp.zeros((24, 40)))
