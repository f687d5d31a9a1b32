"""What a document is, in every implementation of both mixers: what one document changes is nothing in the others."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels import softmax_attention as softmax
from pallas_kernels.documents import document_ids
from pallas_kernels.lightning_attention import gpu as lightning_gpu
from pallas_kernels.lightning_attention import tpu as lightning_tpu
from pallas_kernels.lightning_attention import xla as lightning_xla
from pallas_kernels.softmax_attention import gpu_blocks
from tests.kernels.lightning_cases import SLOPES, tpu_mesh
from tests.model.packings import segmentation
from tests.reference.documents import document_numbers, positions_in_documents

S, N, H = 200, 2, 64  # a whole tile or chunk of every kernel, and a part of one
LIGHTNING = {"xla": lightning_xla, "tpu": lightning_tpu, "gpu": lightning_gpu}
H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")


def test_document_ids_are_the_numbers_of_the_reference():
    random = np.random.default_rng(0)
    segments = np.concatenate([segmentation(random, 24) for _ in range(200)])
    segments[0], segments[1], segments[2] = -1, np.arange(24) % 2, np.where(np.arange(24) % 3, -np.arange(24), 5)
    np.testing.assert_array_equal(jax.jit(document_ids)(segments), document_numbers(segments))


def test_document_ids_of_document_ids_are_the_same():
    ids = document_numbers(np.concatenate([segmentation(np.random.default_rng(i), 24) for i in range(20)]))
    np.testing.assert_array_equal(document_ids(jnp.asarray(ids, jnp.int32)), ids)


@pytest.fixture
def interpreted(monkeypatch):
    """name -> the context in which the kernels of that name run here."""

    def add_product(total, left, right):  # as in test_softmax_gpu_interpreted.py
        return total + jnp.dot(left.astype(jnp.float32), right[...].astype(jnp.float32))

    monkeypatch.setattr(gpu_blocks, "add_product", add_product)

    @contextlib.contextmanager
    def context(name: str):
        with contextlib.ExitStack() as stack:
            if name == "tpu":
                strict = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")
                stack.enter_context(pltpu.force_tpu_interpret_mode(strict))
                stack.enter_context(use_abstract_mesh(tpu_mesh()))
            if name == "gpu":
                stack.enter_context(plgpu.force_gpu_interpret_mode())
                mesh = AbstractMesh((1,), ("chip",), axis_types=(AxisType.Auto,), abstract_device=H200)
                stack.enter_context(use_abstract_mesh(mesh))
            yield

    return context


def arrays(seed: int):
    """q, k, v and the gradient of out, (2, S, N, H) bfloat16 each."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(2, S, N, H)), jnp.bfloat16) for _ in range(4)]


def assert_others_stay(run, documents: np.ndarray, document: int) -> None:
    """run(q, k, v, d_out) -> arrays (2, S, ...); everything of one document of both rows is drawn again."""
    chosen = documents == document
    before, other = arrays(0), arrays(1)
    after = [jnp.where(chosen[..., None, None], y, x) for x, y in zip(before, other, strict=True)]
    others = (documents >= 0) & ~chosen
    assert chosen.any() and others.any()
    for x, y in zip(run(*before), run(*after), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_array_equal(x[others], y[others])
        assert (x != y)[chosen].any()
        assert not x[documents < 0].any()


@pytest.mark.parametrize("document", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["xla", "tpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_softmax_documents_that_come_back_are_apart(name, document, interpreted):
    segments = segmentation(np.random.default_rng(3), S)
    documents = document_numbers(segments)
    positions = positions_in_documents(documents, np.zeros(2, int))[0]
    tags = jnp.asarray(positions, jnp.int32), document_ids(jnp.asarray(segments))
    forward = jax.jit(functools.partial(softmax.attend, implementation=name))
    backward = jax.jit(functools.partial(softmax.attend_gradient, implementation=name))

    def run(q, k, v, d_out):
        with interpreted(name):
            # One pass after the other: an interpreter's callbacks must not starve each other of threads.
            out, lse = jax.block_until_ready(forward(q, k, v, tags, tags))
            whole = d_out, lse, jnp.sum(d_out.astype(jnp.float32) * out, axis=-1)
            return out, *jax.block_until_ready(backward(q, k, v, tags, tags, whole))

    assert_others_stay(run, documents, document)


@pytest.mark.parametrize("document", [0, pytest.param(1, marks=pytest.mark.slow)])
# By default the kernels meet an id that comes back in `lightning_cases.boundary_patterns`.
@pytest.mark.parametrize("name", ["xla", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tpu", "gpu"))])
def test_lightning_documents_that_come_back_are_apart(name, document, interpreted):
    segments = jnp.asarray(segmentation(np.random.default_rng(3), S))
    slope, state = jnp.asarray(SLOPES[:N], jnp.float32), jnp.zeros((2, N, H, H), jnp.float32)
    forward, backward = jax.jit(LIGHTNING[name].forward), jax.jit(LIGHTNING[name].backward)

    def run(q, k, v, d_out):
        with interpreted(name):
            out, _ = jax.block_until_ready(forward(q, k, v, slope, state, segments))
            return out, *jax.block_until_ready(backward(q, k, v, slope, state, segments, d_out, state))[:3]

    assert_others_stay(run, document_numbers(np.asarray(segments)), document)
