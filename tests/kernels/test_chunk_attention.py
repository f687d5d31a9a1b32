"""Attention of a chunk over a cache against NumPy float64: by the Hopper kernel, interpreted, and by plain XLA.

Bound: error against float64 at most twice that of plain XLA at bfloat16.
"""

import contextlib
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels.chunk_attention import chunk_attention, gpu_kernel, gpu_parts, reference
from pallas_kernels.softmax_attention import gpu_blocks
from tests.slow import slow_but

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
ABSTRACT = functools.partial(AbstractMesh, axis_types=(AxisType.Auto,), abstract_device=H200)


@contextlib.contextmanager
def interpreted(monkeypatch, multiprocessors: int = 3):
    """As on an H200. The interpreter (jax 0.12) knows no product with a left operand in registers."""
    monkeypatch.setattr(
        gpu_blocks,
        "add_product",
        lambda total, left, right, **_: total + jnp.dot(left.astype(jnp.float32), right[...].astype(jnp.float32)),
    )
    monkeypatch.setattr(gpu_blocks, "MULTIPROCESSORS", multiprocessors)  # few: a program has several items
    monkeypatch.setattr(gpu_kernel, "ALIKE", 1)  # the second case has its items in the other order
    with plgpu.force_gpu_interpret_mode(), use_abstract_mesh(ABSTRACT((1,), ("chip",))):
        yield


def arrays(sizes, B=2, L=3):
    S, T, N, K, H = sizes
    rng = np.random.default_rng(0)
    shapes = (B, S, N, H), (L, B, K, T, H), (L, B, K, T, H)
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


# Of two rows: queries, places, heads, key heads, head dim, places of the first queries, numbers of queries.
CASES = {
    "a chunk amid a block": (192, 512, 2, 1, 64, (77, 0), (192, 130)),
    "an idle row, a full cache": (70, 256, 2, 2, 128, (186, 3), (70, 0)),
}


@pytest.mark.parametrize("name", slow_but({"an idle row, a full cache"}, CASES))
def test_chunk_attention_by_the_kernel_is_no_worse_than_xla(name, monkeypatch):
    *sizes, first, count = CASES[name]
    query, keys, values = arrays(sizes)
    told = jnp.int32(1), jnp.asarray(first, jnp.int32), jnp.asarray(count, jnp.int32)
    exact = reference.attend(query, keys, values, *told)
    allowed = np.abs(np.asarray(chunk_attention(query, keys, values, *told), np.float64) - exact).max()
    with interpreted(monkeypatch):
        found = np.asarray(chunk_attention(query, keys, values, *told, implementation="gpu"), np.float64)
    assert np.abs(found - exact).max() <= 2 * allowed
    for row, real in enumerate(count):
        assert not found[row, real:].any()


# As above: a part has nothing, or begins amid what is hidden; 16 items of 4 parts, and of 3.
PARTS = {
    "a long row": ((128, 1024, 2, 1, 64, (640, 893), (128, 77)), 16),
    "short rows": ((128, 1024, 2, 1, 64, (0, 130), (128, 0)), 12),
}


@pytest.mark.parametrize("name", slow_but({"a long row"}, PARTS))
def test_parts_of_a_tiles_keys_are_no_worse_than_xla_together(name, monkeypatch):
    (*sizes, first, count), multiprocessors = PARTS[name]
    query, keys, values = arrays(sizes)
    told = jnp.int32(1), jnp.asarray(first, jnp.int32), jnp.asarray(count, jnp.int32)
    exact = reference.attend(query, keys, values, *told)
    allowed = np.abs(np.asarray(chunk_attention(query, keys, values, *told), np.float64) - exact).max()
    monkeypatch.setattr(gpu_parts, "LONG", 128)
    with interpreted(monkeypatch, multiprocessors):
        found = np.asarray(chunk_attention(query, keys, values, *told, implementation="gpu"), np.float64)
    assert np.abs(found - exact).max() <= 2 * allowed
    for row, real in enumerate(count):
        assert not found[row, real:].any()
