"""Compiled programs read from their text: loops multiplied, groups traced to mesh axes, slices counted as slices."""

import jax
import jax.numpy as jnp
import pytest

from mm01_jax.parallel.softmax.ring import ring_attention
from mm01_jax.plan.hlo import collectives, largest, traffic
from mm01_jax.plan.hlo.text import parse
from mm01_jax.plan.traced_work import Assumed, Collective, count
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.softmax_attention import softmax_attention

MESH = {"data": 2, "expert": 4, "tensor": 2, "sequence": 1}
TEXT = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%slice (p.0: f32[10,8], i.0: s32[]) -> f32[1,8] {
  %p.0 = f32[10,8]{1,0} parameter(0)
  %i.0 = s32[] parameter(1)
  ROOT %d = f32[1,8]{1,0} dynamic-slice(%p.0, %i.0, %i.0), dynamic_slice_sizes={1,8}
}

%condition (t: (s32[], f32[10,8])) -> pred[] {
  %t = (s32[], f32[10,8]) parameter(0)
  %n = s32[] constant(10)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (t.1: (s32[], /*index=1*/f32[10,8])) -> (s32[], f32[10,8]) {
  %t.1 = (s32[], f32[10,8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %x.1 = f32[10,8]{1,0} get-tuple-element(%t.1), index=1
  %row = f32[1,8]{1,0} fusion(%x.1, %i.1), kind=kLoop, calls=%slice
  %sum = f32[1,8]{1,0} all-reduce(%row), channel_id=1, replica_groups=GROUPS, to_apply=%add
  ROOT %r = (s32[], f32[10,8]) tuple(%i.1, %x.1)
}

ENTRY %main (a: f32[10,8]) -> f32[10,8] {
  %a = f32[10,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[10,8]) tuple(%zero, %a)
  %loop = (s32[], /*index=1*/f32[10,8]) while(%start), condition=%condition, body=%body
  ROOT %out = f32[10,8]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}", ("tensor",)),
        ("[4,4]<=[2,4,2]T(0,2,1)", ("expert",)),
        ("[2,8]<=[8,2]T(1,0)", ("data", "expert")),
        ("mesh['data'=2,'expert'=4,'tensor'=2,'sequence'=1] {'data'}", ("data",)),
        ("mesh['axis_0'=8,'axis_1'=2] {'axis_1'}", ("tensor",)),
        ("[1,16]<=[16]", ("data", "expert", "tensor")),
    ],
)
def test_collective_in_a_loop_is_counted_as_often_as_it_runs_and_traced_to_its_axes(groups, axes):
    found = collectives.find(parse(TEXT.replace("GROUPS", groups)), MESH)
    assert found.counts == {Collective("all-reduce", axes, 32): 10}


def test_a_slice_of_a_large_array_moves_the_slice():
    slice_read, index, row, compare = 32, 4, 32, 4 + 4 + 1
    once = (slice_read + index + row) + (row + row) + compare
    assert traffic.bytes_moved(parse(TEXT.replace("GROUPS", "[8,2]<=[16]"))) == 10 * once


def test_a_slice_that_gets_other_tiles_on_its_way_moves_the_slice():
    text = """HloModule step

%tiles (input: s8[70,32,128]) -> s8[70,32,128] {
  %input = s8[70,32,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy.1 = s8[70,32,128]{2,1,0:T(8,128)(4,1)} copy(%input)
}

%widened (stack: s8[70,32,128], layer: s32[]) -> bf16[1,32,128] {
  %stack = s8[70,32,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %tiled = s8[70,32,128]{2,1,0:T(8,128)(4,1)} fusion(%stack), kind=kLoop, calls=%tiles
  %layer = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = s8[1,32,128]{2,1,0:T(8,128)(4,1)} dynamic-slice(%tiled, %layer, %zero, %zero), dynamic_slice_sizes={1,32,128}
  ROOT %wide = bf16[1,32,128]{2,1,0:T(8,128)(2,1)} convert(%one)
}

ENTRY %step (weights: s8[70,32,128], at: s32[]) -> bf16[1,32,128] {
  %weights = s8[70,32,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %at = s32[] parameter(1)
  ROOT %out = bf16[1,32,128]{2,1,0:T(8,128)(2,1)} fusion(%weights, %at), kind=kLoop, calls=%widened
}
"""
    assert traffic.bytes_moved(parse(text)) == 32 * 128 + 4 + 2 * 32 * 128


@pytest.mark.parametrize(
    "branches", ["branch_computations={%body, %body}", "true_computation=%body, false_computation=%body"]
)
def test_branch_that_is_taken_half_the_time_moves_half_the_bytes(branches):
    branch = f"%loop = (s32[], /*index=1*/f32[10,8]) conditional(%zero, %start), {branches}"
    lines = TEXT.replace("GROUPS", "[8,2]<=[16]").splitlines()
    text = "\n".join("  " + branch if " while(" in line else line for line in lines)
    whole = traffic.bytes_moved(parse(text))
    assert whole > 0 and traffic.bytes_moved(parse(text), 0.5) == whole / 2


def test_largest_arrays_are_those_in_memory_and_name_their_source():
    text = TEXT.replace("GROUPS", "[8,2]<=[16]").replace(
        "calls=%slice", 'calls=%slice, metadata={op_name="jit(f)/a/b"}'
    )
    (found,) = largest.largest_arrays(parse(text), 1)
    assert found == largest.Made(32, "f32[1,8]", "a/b")  # the 320 bytes are an argument; in the fusion nothing is made


def test_scan_of_matmuls_counts_every_one():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16, 16), jnp.float32)
    assert count(jax.make_jaxpr(scanned)(*shapes).jaxpr, {"x": 1}).flops == 16 * 2 * 8 * 16 * 16


def test_gpu_kernels_count_what_they_declare_forward_and_backward():
    B, S, N, H, E, R, F = 2, 512, 4, 128, 4, 1024, 256

    def step(x, weights, q, tokens, sizes):
        tags = tokens, tokens
        out = softmax_attention(q, q, q, query_tags=tags, key_tags=tags, implementation="gpu")
        out = lightning_attention(out, q, q, jnp.zeros(N), implementation="gpu")[0]
        rows = grouped_matmul(x, weights, sizes, capacity=R, multiple=128, implementation="gpu")
        return jnp.sum(out.astype(jnp.float32)) + jnp.sum(rows.astype(jnp.float32))

    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    types = (jax.sharding.AxisType.Auto,)
    bfloat16 = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((R, 128), (E, 128, F), (B, S, N, H))]
    whole = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((B, S), (E,))]
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), types, abstract_device=device)):
        jaxpr = jax.make_jaxpr(jax.grad(step, argnums=(0, 1, 2)))(*bfloat16, *whole).jaxpr
    softmax = (2 + 4 + 1) * 2 * (S * S // 2) * H * B * N
    grouped = 3 * 2 * R * 128 * F
    # Scores of 96 of the chunk's 128 tokens, made by each of two halves, and their values; two products with states.
    lightning = 4 * B * S * N * (3 * 2 * 96 * H + 4 * H * H)
    assert count(jaxpr, {"x": 1}).by_name["declared"] == softmax + grouped + lightning
    half = count(jaxpr, {"x": 1}, Assumed(balanced_rows=R // 2)).by_name["declared"]
    assert half == softmax + grouped // 2 + lightning


def test_stripes_of_a_ring_count_every_pair():
    B, S, N, H, shards = 1, 4096, 2, 128, 4
    device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    types = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((shards,), ("sequence",), types, abstract_device=device)
    tokens = jax.P(None, "sequence")

    def local(q, tokens):
        return ring_attention(q, q, q, (tokens, tokens), ("sequence",), "contiguous")

    with jax.sharding.use_abstract_mesh(mesh):
        mapped = jax.shard_map(local, in_specs=(tokens, tokens), out_specs=tokens)
        arguments = (jax.ShapeDtypeStruct((B, S, N, H), jnp.bfloat16), jax.ShapeDtypeStruct((B, S), jnp.int32))
        jaxpr = jax.make_jaxpr(mapped)(*arguments).jaxpr
    pairs = shards * (S // shards) ** 2  # of one chip, which meets every stripe
    assert count(jaxpr, {"sequence": shards}).by_name["declared"] == 2 * 2 * B * N * H * pairs


GATHER = """HloModule jit_f, is_scheduled=true

%f (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

ENTRY %main (a: f32[8]) -> f32[16] {
  %a = f32[8]{0} parameter(0)
  %s = (f32[8], f32[16]) all-gather-start(%a), replica_groups=[8,2]<=[16], dimensions={0}
  %w = ((f32[8]), f32[8], u32[]) fusion-start(%a), kind=kLoop, calls=%f
  %x = f32[8]{0} fusion-done(%w)
  ROOT %d = f32[16]{0} all-gather-done(%s)
}
"""


@pytest.mark.parametrize(("opcode", "overlapped"), [("fusion", 1), ("bitcast", 0)])
def test_fusion_that_runs_beside_others_is_work_and_moves_what_it_would_alone(opcode, overlapped):
    text = GATHER.replace("fusion", opcode)
    assert sum(collectives.find(parse(text), MESH).overlapped.values()) == overlapped
    lines = TEXT.replace("GROUPS", "[8,2]<=[16]")
    beside = lines.replace(" fusion(", " fusion-start(")
    assert traffic.bytes_moved(parse(beside)) == traffic.bytes_moved(parse(lines))


@pytest.mark.parametrize(
    ("opcode", "result", "size"),
    [
        ("all-gather", "((f32[8], f32[4]), (f32[16], f32[8]), u32[])", 64 + 32),
        ("reduce-scatter", "((f32[8], f32[4]), (f32[4], f32[2]))", 32 + 16),
        ("all-reduce", "(f32[8], f32[4])", 32 + 16),
    ],
)
def test_message_of_several_arrays_is_as_large_as_all_of_them(opcode, result, size):
    text = GATHER.replace("(f32[8], f32[16]) all-gather-start(%a)", f"{result} {opcode}-start(%a, %b)")
    text = text.replace("  %s =", "  %b = f32[4]{0} parameter(1)\n  %s =")
    assert collectives.find(parse(text), MESH).counts == {Collective(opcode, ("tensor",), size): 1}


OFFLOADED = """HloModule jit_f, is_scheduled=true

%work (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

%inner (i: f32[8]) -> f32[16] {
  %i = f32[8]{0} parameter(0)
  ROOT %g = f32[16]{0} all-gather(%i), replica_groups=[8,2]<=[16], dimensions={0}
}

%called (c: f32[8]) -> f32[16] {
  %c = f32[8]{0} parameter(0)
  ROOT %k = f32[16]{0} call(%c), to_apply=%inner
}

ENTRY %main (a: f32[8]) -> f32[16] {
  %a = f32[8]{0} parameter(0)
  %s = ((), f32[16]) custom-call-start(), async_execution_thread="sparsecore", called_computations={%called}
  %before = f32[8]{0} fusion(%a), kind=kLoop, calls=%work
  %u = ((f32[8]), f32[16]) custom-call-update(%s, %before)
  %while = f32[8]{0} fusion(%a), kind=kLoop, calls=%work
  ROOT %d = f32[16]{0} custom-call-done(%u)
}
"""


def test_message_that_another_core_carries_runs_from_where_it_has_its_operands():
    found = collectives.find(parse(OFFLOADED), MESH)
    message = Collective("all-gather", ("tensor",), 64)
    assert found.counts == {message: 1} and found.overlapped == {message: 1}
    alone = "\n".join(line for line in OFFLOADED.splitlines() if "%while" not in line)
    assert collectives.find(parse(alone), MESH).overlapped[message] == 0


def test_program_that_xla_compiled_has_the_collectives_that_were_written():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def local(x):
        def body(carry, _):
            return jax.lax.psum(carry, "tensor") * 0.5, None

        total = jax.lax.scan(body, jax.lax.pcast(x, "tensor", to="varying"), None, length=5)[0]
        return jax.lax.all_gather(total, "data", tiled=True)

    function = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P(), check_vma=False))
    traced = function.trace(jax.ShapeDtypeStruct((4, 128), jnp.float32))
    sizes = {"data": 2, "tensor": 4}
    stated = count(traced.jaxpr, sizes).collectives
    assert stated == {Collective("all-reduce", ("tensor",), 1024): 5, Collective("all-gather", ("data",), 2048): 1}
    assert collectives.find(parse(traced.lower().compile().as_text()), sizes).counts == stated


@pytest.mark.parametrize(
    ("calls", "index", "moved"),
    [
        (4, "s32[1]{0}", 4 * (800 + 4 + 40)),
        (3, "s32[1]{0}", 3 * (3200 + 4 + 40)),
        (4, "s32[2]{0}", 4 * (3200 + 8 + 40)),
    ],
)
def test_kernels_that_take_stacks_and_the_number_of_a_layer_move_that_layer(calls, index, moved):
    lines = [f'  %k.{n} = f32[10]{{0}} custom-call(%w, %i), custom_call_target="kernel"' for n in range(calls)]
    head = f"ENTRY %main (w: f32[4,200], i: {index}) -> f32[10] {{"
    parameters = ["  %w = f32[4,200]{1,0} parameter(0)", f"  %i = {index} parameter(1)"]
    text = "\n".join(["HloModule jit_f, is_scheduled=true", "", head, *parameters, *lines, "}", ""])
    text = text.replace(f"%k.{calls - 1} =", f"ROOT %k.{calls - 1} =").replace("  ROOT", "  ROOT")
    assert traffic.bytes_moved(parse(text)) == moved


def test_a_fusion_is_no_kernel_that_reads_one_layer():
    text = """HloModule jit_f, is_scheduled=true

%f (p.0: f32[4,200], p.1: s32[1]) -> f32[4,200] {
  %p.0 = f32[4,200]{1,0} parameter(0)
  %p.1 = s32[1]{0} parameter(1)
  ROOT %n = f32[4,200]{1,0} negate(%p.0)
}

ENTRY %main (w: f32[4,200], i: s32[1]) -> f32[4,200] {
  %w = f32[4,200]{1,0} parameter(0)
  %i = s32[1]{0} parameter(1)
  ROOT %r = f32[4,200]{1,0} fusion(%w, %i), kind=kLoop, calls=%f
}
"""
    assert traffic.bytes_moved(parse(text)) == 3200 + 3200
