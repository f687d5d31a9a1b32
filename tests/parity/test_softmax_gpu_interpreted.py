"""The Hopper kernels of softmax attention, interpreted on the CPU, against NumPy float64; and that they lower.

Bound: error against float64 at most twice that of plain XLA at bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, use_abstract_mesh

from pallas_kernels.softmax_attention import attend, gpu, gpu_blocks, masking, reference, softmax_attention, xla

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
ABSTRACT = functools.partial(AbstractMesh, axis_types=(AxisType.Auto,), abstract_device=H200)


@pytest.fixture
def interpreted(monkeypatch):
    """The interpreter (jax 0.12) knows no product with a left operand in registers: the same sum outside of wgmma."""

    def add_product(total, left, right):
        return total + jnp.dot(left.astype(jnp.float32), right[...].astype(jnp.float32))

    monkeypatch.setattr(gpu_blocks, "add_product", add_product)


def _arrays(S, T, N, K, H):
    rng = np.random.default_rng(0)
    shapes = (1, S, N, H), (1, T, K, H), (1, T, K, H), (1, S, N, H)
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


def _packed(S) -> masking.Index:
    """Documents that begin in a tile, with padding in a tile and at the end."""
    cuts = np.array([0, 100, 130, 170])
    segments = np.searchsorted(cuts[1:], np.arange(S), side="right")
    positions = np.arange(S) - cuts[segments]
    segments[60:70] = segments[S - 9 :] = -1
    return jnp.asarray(positions, jnp.int32)[None], jnp.asarray(segments, jnp.int32)[None]


def _one_document(start, length) -> masking.Index:
    return jnp.arange(start, start + length, dtype=jnp.int32)[None], jnp.zeros((1, length), jnp.int32)


CASES = {
    "packed documents": (256, 256, 2, 1, 64, _packed(256), _packed(256)),
    "a length that is no multiple": (150, 150, 1, 1, 128, _packed(150), _packed(150)),
    "a chunk of a prompt over a cache": (70, 300, 2, 2, 64, _one_document(230, 70), _one_document(0, 300)),
    "keys that no query sees": (64, 128, 1, 1, 64, _one_document(0, 64), _one_document(64, 128)),
}


@pytest.mark.parametrize("name", CASES)
def test_softmax_gpu_is_no_worse_than_xla(name, interpreted):
    *shape, query_index, key_index = CASES[name]
    q, k, v, d_out = _arrays(*shape)
    index = query_index, key_index
    exact, exact_lse = reference.attend(q, k, v, *index)
    exact = exact, *reference.attend_gradient(q, k, v, *index, d_out)
    least = np.finfo(np.float32).min
    delta = (np.asarray(d_out, np.float64) * exact[0]).sum(-1)
    whole = d_out, *(jnp.asarray(x, jnp.float32) for x in (np.maximum(exact_lse, least), delta))
    plain, pull = jax.vjp(lambda *qkv: xla.softmax_attention(*qkv, *index), q, k, v)
    with plgpu.force_gpu_interpret_mode():
        # One pass after the other: the interpreter's callbacks must not starve each other of threads.
        out, lse = jax.block_until_ready(jax.jit(gpu.attend)(q, k, v, *index))
        gradients = jax.block_until_ready(jax.jit(gpu.attend_gradient)(q, k, v, *index, whole))
    np.testing.assert_allclose(lse, np.maximum(exact_lse, least), rtol=1e-5, atol=1e-5)
    for ours, theirs, e in zip((out, *gradients), (plain, *pull(d_out)), exact, strict=True):
        error, allowed = (np.abs(np.asarray(x, np.float64) - e).max() for x in (ours, theirs))
        assert error <= 2 * allowed + 1e-30


def test_softmax_gpu_gradient_rule_is_the_gradient_of_its_parts(interpreted):
    *shape, query_index, key_index = CASES["packed documents"]
    q, k, v, d_out = _arrays(*shape)
    with plgpu.force_gpu_interpret_mode():
        out, pull = jax.vjp(lambda *qkv: gpu.softmax_attention(*qkv, query_index, key_index), q, k, v)
        gradients = jax.block_until_ready(pull(d_out))
    exact = reference.attend_gradient(q, k, v, query_index, key_index, d_out)
    assert out.dtype == q.dtype
    for ours, e in zip(gradients, exact, strict=True):
        assert ours.dtype == q.dtype
        np.testing.assert_allclose(np.asarray(ours, np.float64), e, rtol=0, atol=0.02 * np.abs(e).max())


@pytest.mark.parametrize("seed", range(8))
def test_softmax_spans_hold_every_visible_pair_and_clear_ones_are_all_visible(seed):
    rng, size, blocks = np.random.default_rng(seed), 4, 12

    def index(order):
        segments = np.sort(rng.integers(0, rng.integers(1, 5), (3, size * blocks)), axis=1)
        segments = np.where(rng.random(segments.shape) < rng.choice([0.0, 0.1]), -1, segments)
        positions = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
        return tuple(jnp.asarray(x[:, order], jnp.int32) for x in (positions, segments))

    queries = index(np.arange(size * blocks))
    keys = index(np.roll(np.arange(size * blocks), size * rng.integers(blocks)) if seed % 2 else slice(None))
    seen = np.asarray(masking.visible(queries, keys)).reshape(3, blocks, size, blocks, size)
    for find, axes in ((masking.key_spans, (0, 1, 3, 2, 4)), (masking.query_spans, (0, 3, 1, 2, 4))):
        spans = find(queries, size, keys, size)
        pairs = seen.transpose(axes)
        spans = masking.Spans(*map(np.asarray, spans))
        block = np.arange(blocks)
        inside = (spans.first[..., None] <= block) & (block < spans.end[..., None])
        clear = (spans.clear[..., None] <= block) & (block < spans.clear_end[..., None])
        assert not pairs.any((3, 4))[~inside].any()
        assert pairs.all((3, 4))[clear].all()
        assert (spans.first <= spans.clear).all() and (spans.clear_end <= spans.end).all()
        assert (spans.clear <= spans.clear_end).all()


def test_softmax_spans_of_one_document_are_the_triangle():
    index = _one_document(0, 64)
    spans = masking.key_spans(index, 16, index, 16)  # of the first block none is clear: both stand at its end
    np.testing.assert_array_equal(jnp.stack(spans)[:, 0], [[0] * 4, [1, 0, 0, 0], [1, 1, 2, 3], [1, 2, 3, 4]])


def test_softmax_gpu_lowers_inside_a_checked_shard_map():
    rows, index = PartitionSpec("data"), (PartitionSpec("data"),) * 2

    def loss(q, k, v, index):
        out = softmax_attention(q, k, v, query_index=index, key_index=index, implementation="gpu")
        return jax.lax.psum(out.astype(jnp.float32).sum(), "data")

    def local(q, k, v, index):
        _, lse = attend(q, k, v, index, index)
        return *jax.grad(loss, argnums=(0, 1, 2))(q, k, v, index), lse

    with use_abstract_mesh(ABSTRACT((2,), ("data",))):
        mapped = jax.shard_map(local, in_specs=(rows, rows, rows, index), out_specs=rows)
        q, k = (jax.ShapeDtypeStruct((2, 200, n, 128), jnp.bfloat16) for n in (4, 2))
        tokens = jax.ShapeDtypeStruct((2, 200), jnp.int32)
        text = jax.jit(mapped).trace(q, k, k, (tokens, tokens)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") >= 4


def test_softmax_gpu_says_what_it_cannot_take():
    def why(S=64, H=64, dtype=jnp.bfloat16):
        q = jax.ShapeDtypeStruct((1, S, 1, H), dtype)
        return gpu.unsupported(q, q, q)

    assert "GPU" in why()
    with use_abstract_mesh(ABSTRACT((1,), ("x",))):
        assert why() is None
        assert "bfloat16" in why(dtype=jnp.float32)
        assert "head_dim" in why(H=32)
        assert "64 queries" in why(S=1)
