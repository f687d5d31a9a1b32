"""The Hopper kernels of lightning attention, interpreted on the CPU, against NumPy float64; and that they lower.

The interpreter fills memory that nothing wrote with NaN and refuses reads out of bounds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, use_abstract_mesh

from pallas_kernels.lightning_attention import (
    ages,
    gpu,
    gpu_scan,
    gpu_split,
    lightning_attention,
    lightning_attention_step,
    reference,
)
from tests.kernels import lightning_cases as cases
from tests.slow import slow_but

H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")


def _check(x: cases.Case):
    with plgpu.force_gpu_interpret_mode():
        # One pass after the other: the interpreter's callbacks must not starve each other of threads.
        ahead = jax.block_until_ready(jax.jit(gpu.forward)(*x[:6]))
        back = jax.block_until_ready(jax.jit(gpu.backward)(*x))
    cases.assert_no_worse_than_xla((*ahead, *back), x)


@pytest.fixture
def two_segments(monkeypatch):
    """The time split of long sequences, forced on short ones: two segments, of two parts where they are long enough;
    and fewer programs than items, so that a program has several."""

    def cut(programs, chunks, multiprocessors):
        length = -(-chunks // 2)
        part = -(-length // 2)
        parts = -(-length // part)
        return gpu_split.Cut(-(-chunks // (parts * part)), parts, part)

    monkeypatch.setattr(gpu_split, "cut", cut)
    monkeypatch.setattr(gpu_scan, "Plan", functools.partial(gpu_scan.Plan, multiprocessors=3))


def _packed(S: int) -> np.ndarray:
    """Documents and padding, with a boundary and padding inside a chunk."""
    ids = np.searchsorted([20, 100, 130], np.arange(S), side="right")
    ids[60:70] = -1
    ids[S - 9 :] = -1
    return ids[None]


@pytest.mark.parametrize("H", slow_but([128], [64, 128]))
def test_lightning_gpu_is_no_worse_than_xla(H):
    _check(cases.case(128, "bfloat16", H=H, slopes=cases.SLOPES[:1]))


def test_lightning_gpu_of_a_ragged_packed_split_sequence_is_no_worse_than_xla(two_segments):
    _check(cases.case(250, "bfloat16", H=64, slopes=cases.SLOPES[1:3], segment_ids=_packed(250)))


def test_lightning_gpu_of_joined_arrays_has_the_bits_of_three(two_segments):
    q, k, v, *others = cases.case(250, "bfloat16", H=64, slopes=cases.SLOPES[1:3], segment_ids=_packed(250))[:6]
    with plgpu.force_gpu_interpret_mode():
        three = jax.block_until_ready(jax.jit(gpu.forward)(q, k, v, *others))
        joined = jax.block_until_ready(jax.jit(gpu.forward_joined)(jnp.stack([q, k, v], axis=3), *others))
    for ours, expected in zip(joined, three, strict=True):
        np.testing.assert_array_equal(ours, expected)


def _states_alone_and_beside_the_outputs():
    """For each direction: the state by `gpu.state`, and as the passes that make outputs and gradients leave it."""
    q, k, v, slope, state, ids, d_out, _ = cases.case(
        250, "bfloat16", H=64, slopes=cases.SLOPES[1:3], segment_ids=_packed(250)
    )
    with plgpu.force_gpu_interpret_mode():
        _, end = jax.block_until_ready(jax.jit(gpu.forward)(q, k, v, slope, None, ids))
        *_, start = jax.block_until_ready(jax.jit(gpu.backward)(q, k, v, slope, state, ids, d_out, 0 * state))
        alone = jax.jit(gpu.state, static_argnames="reverse")
        ahead = jax.block_until_ready(alone(k, v, slope, ids, reverse=False))
        back = jax.block_until_ready(alone(q, d_out, slope, ids, reverse=True))
    return [(ahead, end), (back, start)]


def test_lightning_gpu_state_alone_has_the_bits_of_the_one_beside_the_outputs():
    for alone, beside in _states_alone_and_beside_the_outputs():
        np.testing.assert_array_equal(alone, beside)


def test_lightning_gpu_state_of_segments_is_that_of_the_outputs_pass(two_segments):
    for alone, beside in _states_alone_and_beside_the_outputs():
        # The same products; the segments' sums in another order, of float32.
        np.testing.assert_allclose(
            alone, beside, rtol=0, atol=4 * cases.UNIT["float32"] * np.abs(np.asarray(beside)).max()
        )


def test_lightning_gpu_of_documents_without_padding_is_no_worse_than_xla():
    """A boundary in either half of a chunk, at its start, and none: with and without blocks beside the diagonal."""
    ids = np.searchsorted([40, 228, 384], np.arange(512), side="right")[None]
    _check(cases.case(512, "bfloat16", H=64, slopes=cases.SLOPES[1:2], segment_ids=ids))


def test_lightning_gpu_without_a_state_equals_one_of_zeros():
    x = cases.case(64, "bfloat16", H=64, slopes=cases.SLOPES[:1])
    seen = []
    with plgpu.force_gpu_interpret_mode():
        for state in (None, jnp.zeros_like(x.state)):
            ahead = jax.block_until_ready(jax.jit(gpu.forward)(*x[:4], state, None))
            back = jax.block_until_ready(jax.jit(gpu.backward)(*x[:4], state, *x[5:]))
            seen.append((*ahead, *back[:3]))
    jax.tree.map(np.testing.assert_array_equal, *seen)


@pytest.mark.slow
@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize("S", [1, 63, 64, 65, 127, 129, 257, 384])
def test_lightning_gpu_is_no_worse_than_xla_at_every_length(S, H):
    _check(cases.case(S, "bfloat16", H=H, slopes=cases.SLOPES[::2]))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", cases.boundary_patterns(300))
def test_lightning_gpu_is_no_worse_than_xla_for_every_boundary_pattern(pattern, two_segments):
    ids = cases.boundary_patterns(300)[pattern][None]
    _check(cases.case(300, "bfloat16", H=64, slopes=cases.SLOPES[:2], segment_ids=ids))


def test_lightning_gpu_split_state_does_not_depend_on_the_split():
    rng, B, N, H, chunk = np.random.default_rng(0), 2, 3, 8, 4
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (B, 48)), axis=1), jnp.int32).at[:, 30:36].set(-1)
    k, v = (jnp.asarray(rng.normal(size=(B, 48, N, H)), jnp.float32) for _ in range(2))
    slope = jnp.asarray([0.9, 0.05, 0.001], jnp.float32)
    state = jnp.asarray(rng.normal(size=(B, N, H, H)), jnp.float32)
    chunks, _ = gpu_split.packed_chunks(ages.documents(ids), chunk)
    split = gpu_split.split(chunks, gpu_split.Cut(segments=4, parts=3, part=1), slope, B)
    nothing = np.zeros((B, N, H, H))
    pieces = [slice(4 * p, 4 * p + 4) for p in range(12)]
    partial = [reference.forward(k[:, p], k[:, p], v[:, p], slope, nothing, ids[:, p])[1] for p in pieces]
    entering = gpu_split.passed_on(split, jnp.asarray(np.stack(partial), jnp.float32), state, reverse=False)
    for g in range(1, 4):
        _, whole = reference.forward(k[:, : 12 * g], k[:, : 12 * g], v[:, : 12 * g], slope, state, ids[:, : 12 * g])
        np.testing.assert_allclose(entering[g], whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())


def test_lightning_gpu_split_leaves_out_only_chunks_whose_decay_is_zero():
    slope = jnp.asarray([0.9, 0.05, 0.0], jnp.float32)
    cut = gpu_split.Cut(segments=2, parts=1, part=100)
    forward = gpu_split.split(gpu_split.plain_chunks(128 * 200, 128), cut, slope, 1).forward
    distance = 128.0 * (100 - np.asarray(forward.skip[0, 0]))
    left_out = np.exp(-np.asarray(slope) * distance.astype(np.float32), dtype=np.float32)
    np.testing.assert_array_equal(left_out[:2], 0)
    assert forward.skip[0, 0, 2] == 0, "without decay every chunk counts"
    assert (forward.skip[1] == 100).all(), "the last segment's end comes from the full pass"
    np.testing.assert_array_equal(forward.skip + forward.steps, 100)


@pytest.mark.parametrize("programs", [2, 4, 16, 32, 48, 128])
@pytest.mark.parametrize("chunks", [16, 100, 256, 1057, 1639, 2113, 8192])
def test_lightning_gpu_split_has_no_empty_segment(programs, chunks):
    cut = gpu_split.cut(programs, chunks, 132)
    length = cut.parts * cut.part
    assert (cut.segments - 1) * length < chunks <= cut.segments * length


def test_lightning_gpu_split_fills_the_chip_with_few_heads_and_leaves_many_alone():
    assert gpu_split.cut(128, 256, 132).segments == 1
    assert gpu_split.cut(16, 256, 132).segments == 8
    assert gpu_split.cut(16, 16, 132).segments == 1, "segments of fewer than 16 chunks are not worth their states"
    assert gpu_split.cut(32, 1024, 132) == gpu_split.Cut(segments=4, parts=8, part=32)


@pytest.mark.parametrize("H", [64, 128])
def test_lightning_gpu_decode_step_is_the_recurrence(H):
    rng, shape = np.random.default_rng(0), (2, 1, H)
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3))
    slope, state = jnp.asarray([0.3], jnp.float32), jnp.asarray(rng.normal(size=(2, 1, H, H)), jnp.float32)
    active = jnp.asarray([True, False])
    with plgpu.force_gpu_interpret_mode():
        out, new = jax.block_until_ready(jax.jit(gpu.step)(q, k, v, slope, state, active))
    exact_out, exact_new = reference.step(q, k, v, slope, state, active)
    # The state: one product and one sum in float32. The output: one rounding to bfloat16 of a float32 sum.
    np.testing.assert_allclose(new, exact_new, rtol=0, atol=4 * cases.UNIT["float32"] * np.abs(exact_new).max())
    np.testing.assert_allclose(np.asarray(out, np.float64), exact_out, rtol=2 * cases.UNIT["bfloat16"], atol=1e-4)
    np.testing.assert_array_equal(new[1], state[1])


@pytest.mark.parametrize("rows", ["all active", "some idle"])
def test_lightning_gpu_decode_step_lowers(rows):
    vector, active = jax.ShapeDtypeStruct((2, 1, 128), jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.bool_)
    slope, state = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((2, 1, 128, 128), jnp.float32)
    with use_abstract_mesh(AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=H200)):
        traced = jax.jit(gpu.step).trace(vector, vector, vector, slope, state, active if rows == "some idle" else None)
        assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("S", [256, 200])
def test_lightning_gpu_lowers_inside_a_checked_shard_map(S):
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,), abstract_device=H200)
    rows, heads = PartitionSpec("data"), PartitionSpec()

    def loss(q, k, v, slope):
        out, _ = lightning_attention(q, k, v, slope, implementation="gpu")
        return jax.lax.psum(out.astype(jnp.float32).sum(), "data")

    with use_abstract_mesh(mesh):
        local = jax.shard_map(jax.grad(loss, argnums=(0, 1, 2)), in_specs=(rows, rows, rows, heads), out_specs=rows)
        x = jax.ShapeDtypeStruct((2, S, 2, 128), jnp.bfloat16)
        lowered = jax.jit(local).trace(x, x, x, jax.ShapeDtypeStruct((2,), jnp.float32))
        text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") >= 3


@pytest.mark.parametrize("idle", [False, True])
def test_lightning_gpu_decode_step_lowers_inside_a_checked_shard_map(idle):
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,), abstract_device=H200)
    rows, heads = PartitionSpec("data"), PartitionSpec()

    def step(q, k, v, slope, state, active):
        active = active if idle else None
        return lightning_attention_step(q, k, v, slope, state, active_B=active, implementation="gpu")

    with use_abstract_mesh(mesh):
        local = jax.shard_map(step, in_specs=(rows, rows, rows, heads, rows, rows), out_specs=rows)
        x, state = jax.ShapeDtypeStruct((2, 2, 128), jnp.bfloat16), jax.ShapeDtypeStruct((2, 2, 128, 128), jnp.float32)
        small = [jax.ShapeDtypeStruct((2,), dtype) for dtype in (jnp.float32, jnp.bool_)]
        lowered = jax.jit(local).trace(x, x, x, small[0], state, small[1]).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("mosaic_gpu") >= 1


def test_lightning_gpu_decode_step_outside_its_place_equals_that_in_it(monkeypatch):
    rng, shape = np.random.default_rng(1), (2, 1, 64)
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3))
    slope, state = jnp.asarray([0.3], jnp.float32), jnp.asarray(rng.normal(size=(2, 1, 64, 64)), jnp.float32)
    arguments = q, k, v, slope, state, jnp.asarray([True, False])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    specs = tuple(PartitionSpec() if x is slope else PartitionSpec("data") for x in arguments)
    with plgpu.force_gpu_interpret_mode():
        alone = jax.block_until_ready(jax.jit(gpu.step)(*arguments))
        mapped = jax.shard_map(gpu.step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"))
        jax.tree.map(np.testing.assert_array_equal, alone, jax.block_until_ready(jax.jit(mapped)(*arguments)))


def test_lightning_gpu_says_what_it_cannot_take():
    q = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.float32)
    with use_abstract_mesh(AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=H200)):
        assert "bfloat16" in gpu.unsupported(q, q, q, None, None, None)
    assert "GPU" in gpu.unsupported(q, q, q, None, None, None)
