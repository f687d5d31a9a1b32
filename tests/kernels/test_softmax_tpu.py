"""The TPU kernels of softmax attention, interpreted on the CPU, against NumPy float64.

The interpreter fills memory that nothing wrote with NaN, refuses reads out of bounds and watches for races. Bound:
error against float64 at most twice that of plain XLA at the same dtype.
"""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, use_abstract_mesh

from pallas_kernels.softmax_attention import softmax_attention, tpu, tpu_blocks
from tests.kernels import lightning_cases
from tests.kernels import softmax_cases as cases
from tests.slow import slow_but


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The kernels run as they are, in the interpreter, for a TPU v5p; blocks of one tile, so that a row has several."""
    monkeypatch.setattr(tpu_blocks, "BLOCKS", (tpu_blocks.TILE,))
    strict = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
    with pltpu.force_tpu_interpret_mode(strict), use_abstract_mesh(lightning_cases.tpu_mesh()):
        yield


BY_DEFAULT = [  # each case in one dtype, each dtype in several cases
    ("packed documents", jnp.bfloat16),
    ("a length that is no multiple", jnp.float32),
    ("a chunk of a prompt over a cache", jnp.float32),
    ("rows and grouped heads", jnp.bfloat16),
    ("keys that no query sees", jnp.bfloat16),
]


@pytest.mark.parametrize(
    ("name", "dtype"), slow_but(BY_DEFAULT, itertools.product(cases.CASES, (jnp.bfloat16, jnp.float32)))
)
def test_softmax_tpu_is_no_worse_than_xla(name, dtype):
    cases.assert_no_worse_than_xla("tpu", name, dtype)


def test_softmax_tpu_gradient_rule_is_the_gradient_of_its_parts():
    cases.assert_rule_is_the_gradient("tpu", jnp.float32)


def test_softmax_tpu_traces_inside_a_checked_shard_map_with_its_gradient():
    rows = PartitionSpec("chip")

    def loss(q, k, tokens):
        tags = {"query_tags": (tokens, tokens), "key_tags": (tokens, tokens)}
        out = softmax_attention(q, k, k, **tags, implementation="tpu")
        return jax.lax.psum(out.astype(jnp.float32).sum(), "chip")

    mapped = jax.shard_map(jax.grad(loss, argnums=(0, 1)), in_specs=(rows, rows, rows), out_specs=rows)
    q, k = (jax.ShapeDtypeStruct((2, 200, n, 128), jnp.bfloat16) for n in (4, 2))
    text = str(jax.make_jaxpr(mapped)(q, k, jax.ShapeDtypeStruct((2, 200), jnp.int32)))
    assert text.count("pallas_call") >= 3


def test_softmax_tpu_says_what_it_cannot_take():
    def why(S=64, H=64):
        q = jax.ShapeDtypeStruct((1, S, 1, H), jnp.bfloat16)
        return tpu.unsupported(q, q, q)

    assert why() is None
    assert "head_dim" in why(H=32)
    assert "64 queries" in why(S=1)
    with use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        assert "not for a TPU" in why()


@pytest.mark.slow
def test_softmax_tpu_blocks_of_production_size_are_no_worse_than_xla(monkeypatch):
    monkeypatch.setattr(tpu_blocks, "BLOCKS", (512, 256, 128))
    tags = cases.packed(1024)
    monkeypatch.setitem(cases.CASES, "large blocks", (1024, 1024, 2, 1, 128, tags, tags))
    cases.assert_no_worse_than_xla("tpu", "large blocks", jnp.bfloat16)


_COMPILE = """
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from jax.sharding import NamedSharding, PartitionSpec
from tests.kernels.compile_only import mesh_of
from pallas_kernels.softmax_attention import attend, attend_gradient
mesh = mesh_of({generation!r})
where = NamedSharding(mesh, PartitionSpec())
def of(*shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
for S, T, N, K, H, dtype in {shapes}:
    q, k = of(1, S, N, H, dtype=dtype), of(1, T, K, H, dtype=dtype)
    tags = [(of(1, L, dtype=jnp.int32),) * 2 for L in (S, T)]
    stats = (of(1, S, N, dtype=jnp.float32),) * 2
    with jax.set_mesh(mesh):
        jax.jit(attend).lower(q, k, k, *tags).compile()
        jax.jit(attend_gradient).lower(q, k, k, *tags, (q, *stats)).compile()
"""


def _compile(generation: str, shapes) -> None:
    """In a process of its own: libtpu reads its settings once, and this process belongs to the CPU."""
    pytest.importorskip("libtpu")
    program = _COMPILE.format(generation=generation, shapes=shapes)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_softmax_tpu_kernels_compile_for_v5e():
    _compile("v5e", [(8192, 8192, 8, 1, 128, "bfloat16")])


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v5e", "v5p", "v6e"])
def test_softmax_tpu_kernels_compile_for_every_generation(generation):
    kinds = (16, 4, 64, "bfloat16"), (4, 1, 128, "float32"), (4, 1, 256, "bfloat16")
    _compile(generation, [*((8192, 8192, *kind) for kind in kinds), (512, 32768, 8, 1, 128, "bfloat16")])
