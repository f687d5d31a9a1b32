"""The Hopper kernels of softmax attention, interpreted on the CPU, against NumPy float64; and that they lower.

Bound: error against float64 at most twice that of plain XLA at bfloat16 (`softmax_cases`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, use_abstract_mesh

from pallas_kernels.softmax_attention import (
    attend,
    attend_gradient,
    gpu,
    gpu_blocks,
    gpu_parts,
    masking,
    softmax_attention,
)
from tests.kernels import softmax_cases as cases
from tests.slow import slow_but

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
HEADS_OF_64 = [name for name, (*_, head_dim, _, _) in cases.CASES.items() if head_dim == 64]
ABSTRACT = functools.partial(AbstractMesh, axis_types=(AxisType.Auto,), abstract_device=H200)


@pytest.fixture
def interpreted(monkeypatch):
    """As on an H200. The interpreter (jax 0.12) knows no product with a left operand in registers: the same sum outside
    of wgmma.
    """
    from_memory = gpu_blocks.products

    def products(*pairs, then=lambda: None):
        if all(isinstance(left, jax.Array) for left, _ in pairs):
            then()
            return tuple(add_product(0.0, *pair) for pair in pairs)
        return from_memory(*pairs, then=then)

    def add_product(total, left, right, then=lambda: None):
        then()
        return total + jnp.dot(left.astype(jnp.float32), right[...].astype(jnp.float32))

    def add_products(totals, *pairs, then=lambda left: None):
        lefts = [left() for left, _ in pairs]
        then(lefts[-1])
        return tuple(add_product(*x) for x in zip(totals, lefts, [right for _, right in pairs], strict=True))

    def add_from_memory(totals, lefts, right):
        return tuple(add_product(total, left[...], right) for total, left in zip(totals, lefts, strict=True))

    monkeypatch.setattr(gpu_blocks, "products", products)
    monkeypatch.setattr(gpu_blocks, "add_product", add_product)
    monkeypatch.setattr(gpu_blocks, "add_products", add_products)
    monkeypatch.setattr(gpu_blocks, "add_from_memory", add_from_memory)
    monkeypatch.setattr(gpu_blocks, "MULTIPROCESSORS", 3)  # a program has several items
    with plgpu.force_gpu_interpret_mode(), use_abstract_mesh(ABSTRACT((1,), ("chip",))):
        yield


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(  # logits kept between the gradients' passes, or made again
    ("name", "kept"),
    slow_but(
        [("a length that is no multiple", True)], [(name, kept) for name in cases.CASES for kept in (True, False)]
    ),
)
def test_softmax_gpu_is_no_worse_than_xla(name, kept, monkeypatch):
    monkeypatch.setattr(gpu_parts, "pays", lambda K, H: kept)
    cases.assert_no_worse_than_xla("gpu", name, jnp.bfloat16)


@pytest.mark.usefixtures("interpreted")
def test_softmax_gpu_gradient_rule_is_the_gradient_of_its_parts():
    cases.assert_rule_is_the_gradient("gpu", jnp.bfloat16)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", slow_but(["a chunk of a prompt over a cache"], HEADS_OF_64))
def test_softmax_gpu_items_of_three_strips_have_the_bits_of_two(name):
    *shape, query_tags, key_tags = cases.CASES[name]
    q, k, v, _ = cases.arrays(*shape, dtype=jnp.bfloat16, B=len(query_tags[0]))
    arrays = q, k, v, query_tags, key_tags
    assert gpu.STRIPS[q.shape[3]] == 3
    out, lse = jax.block_until_ready(jax.jit(functools.partial(gpu.attend, dtype=jnp.bfloat16))(*arrays))
    wide, same = jax.block_until_ready(jax.jit(functools.partial(gpu.attend, dtype=jnp.float32))(*arrays))
    np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))
    np.testing.assert_array_equal(lse, same)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["rows and grouped heads", "packed documents"])
def test_softmax_gpu_gradients_have_the_same_bits_in_any_parts(name, monkeypatch):
    *shape, query_tags, key_tags = cases.CASES[name]
    B = len(query_tags[0])
    q, k, v, d_out = cases.arrays(*shape, dtype=jnp.bfloat16, B=B)
    lse, delta = (jnp.zeros(q.shape[:3], jnp.float32) + x for x in (4.0, 0.1))
    found = []
    monkeypatch.setattr(gpu_parts, "FEWEST", 0)
    monkeypatch.setattr(gpu_parts, "pays", lambda K, H: True)
    pair = 2 * (q.shape[2] // k.shape[2]) * shape[0] * shape[1]  # bytes of a row and key head
    for most in (0, pair, 2 * pair, B * k.shape[2] * pair):  # none, a head each, a row each, one part
        monkeypatch.setattr(gpu_parts, "MOST", most)
        gradients = jax.jit(functools.partial(attend_gradient, implementation="gpu"))
        found.append(jax.block_until_ready(gradients(q, k, v, query_tags, key_tags, (d_out, lse, delta))))
        jax.clear_caches()
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_softmax_gpu_parts_are_the_whole_of_all_rows_and_heads_and_within_their_bytes():
    for shape in ((1, 8, 8, 8192, 8192), (4, 1, 8, 8192, 8192), (16, 4, 4, 2048, 2048), (7, 4, 16, 4096, 8192)):
        B, K, group, S, T = shape
        parts = gpu_parts.parts_of(*shape)
        pairs = [(b, k) for p in parts for b in range(p.row, p.row + p.rows) for k in range(p.head, p.head + p.heads)]
        assert sorted(pairs) == [(b, k) for b in range(B) for k in range(K)]
        assert all(2 * p.rows * p.heads * group * S * T <= gpu_parts.MOST for p in parts)
    assert len(gpu_parts.parts_of(1, 8, 8, 8192, 8192)) == 2
    assert gpu_parts.pays(8, 128)
    assert not any(gpu_parts.pays(*x) for x in ((1, 128), (4, 64)))
    assert gpu_parts.parts_of(1, 1, 8, 2**17, 2**17) == []  # 256 GiB
    assert gpu_parts.parts_of(2, 1, 8, 2**14, 2**14) == []  # a row at a time has too few items


@pytest.mark.parametrize("seed", range(8))
def test_softmax_spans_hold_every_visible_pair_and_clear_ones_are_all_visible(seed):
    rng, size, blocks = np.random.default_rng(seed), 4, 12

    def tags(order):
        segments = np.sort(rng.integers(0, rng.integers(1, 5), (3, size * blocks)), axis=1)
        segments = np.where(rng.random(segments.shape) < rng.choice([0.0, 0.1]), -1, segments)
        positions = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
        return tuple(jnp.asarray(x[:, order], jnp.int32) for x in (positions, segments))

    queries = tags(np.arange(size * blocks))
    keys = tags(np.roll(np.arange(size * blocks), size * rng.integers(blocks)) if seed % 2 else slice(None))
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
    of_queries = masking.key_spans(queries, size, keys, size)
    of_keys = masking.query_spans(queries, size, keys, size, of_queries)
    ranges = [np.stack(x)[..., None] for x in (of_queries, of_keys)]  # first and last are their beginning and end
    read, written = ((x[0] <= np.arange(blocks)) & (np.arange(blocks) < x[-1]) for x in ranges)
    assert not (read & ~written.transpose(0, 2, 1)).any()


def test_softmax_spans_of_one_document_are_the_triangle():
    tags = cases.one_document(0, 64)
    spans = masking.key_spans(tags, 16, tags, 16)  # of the first block none is clear: both stand at its end
    np.testing.assert_array_equal(jnp.stack(spans)[:, 0], [[0] * 4, [1, 0, 0, 0], [1, 1, 2, 3], [1, 2, 3, 4]])


@pytest.mark.parametrize("seed", range(4))
def test_softmax_spans_of_packed_rows_end_at_the_last_visible_pair(seed):
    rng, size, blocks = np.random.default_rng(seed), 8, 12
    documents = np.sort(rng.integers(0, 4, (3, size * blocks)), axis=1)
    begins = np.stack([np.searchsorted(row, row) for row in documents])
    tags = tuple(jnp.asarray(x, jnp.int32) for x in (np.arange(size * blocks) - begins, documents))
    seen = np.asarray(masking.visible(tags, tags)).reshape(3, blocks, size, blocks, size)
    for find, axes in ((masking.key_spans, (0, 1, 3, 2, 4)), (masking.query_spans, (0, 3, 1, 2, 4))):
        spans, pairs = find(tags, size, tags, size), seen.transpose(axes)
        first = pairs.any((3, 4)).argmax(-1)
        np.testing.assert_array_equal(spans.first, first)
        np.testing.assert_array_equal(spans.end, blocks - pairs.any((3, 4))[..., ::-1].argmax(-1))
        clear = pairs.all((3, 4)).sum(-1)
        np.testing.assert_array_equal(spans.clear_end - spans.clear, clear)


def test_softmax_gpu_lowers_inside_a_checked_shard_map():
    rows, tags = PartitionSpec("data"), (PartitionSpec("data"),) * 2

    def loss(q, k, v, tags):
        out = softmax_attention(q, k, v, query_tags=tags, key_tags=tags, implementation="gpu")
        return jax.lax.psum(out.astype(jnp.float32).sum(), "data")

    def local(q, k, v, tags):
        _, lse = attend(q, k, v, tags, tags)
        return *jax.grad(loss, argnums=(0, 1, 2))(q, k, v, tags), lse

    with use_abstract_mesh(ABSTRACT((2,), ("data",))):
        mapped = jax.shard_map(local, in_specs=(rows, rows, rows, tags), out_specs=rows)
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
