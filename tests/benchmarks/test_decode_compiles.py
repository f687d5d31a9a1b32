"""A block of decode steps compiled for one TPU that is not here: every operation a kernel, nothing copied."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

pytest.importorskip("libtpu")

from benchmarks.inference import bare_loop  # noqa: E402
from mm01_jax import sharding  # noqa: E402
from mm01_jax.config import ComputeConfig, MeshConfig, ModelConfig, Rules  # noqa: E402
from mm01_jax.inference import sampling  # noqa: E402
from mm01_jax.model.decoder import TextModel  # noqa: E402
from mm01_jax.model.mixers import empty_cache  # noqa: E402
from mm01_jax.plan import compiler  # noqa: E402
from tests.kernels import compile_only  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=512,
    embed_dim=512,
    num_periods=1,
    period=("lightning", "softmax"),
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    rotary_dim=64,
    num_experts=8,
    num_experts_per_token=2,
    expert_dim=256,
)
COMPUTE = ComputeConfig(dtype="bfloat16", param_dtype="bfloat16")
KERNELS = ("projection_step", "lightning_step", "attention_step", "norm_step", "expert_step")


@pytest.mark.parametrize(("rows", "kernels"), [(1, KERNELS), (40, ("lightning_ring_step", "lightning_fold"))])
def test_a_block_compiles_for_a_tpu_by_kernels_and_copies_no_cache(rows, kernels):
    mesh = sharding.make_mesh(MeshConfig(), list(compile_only.mesh_of("v5e").devices.flat))
    array = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))

    def made(function, *arguments):
        return jax.tree.map(lambda x: array(x.shape, x.dtype), jax.eval_shape(function, *arguments))

    model = made(lambda key: TextModel(CONFIG, COMPUTE, Rules(), rngs=nnx.Rngs(params=key)), jax.random.key(0))
    history = made(lambda: sampling.empty_history(rows, CONFIG.vocab_size))
    with jax.set_mesh(mesh):
        cache = made(lambda: empty_cache(CONFIG, COMPUTE, Rules(), rows, 512))
        row = functools.partial(array, (rows,))
        answers = bare_loop.Answers(cache, row(jnp.int32), row(bool), row(jnp.int32), history)
        draw = bare_loop.Draw(None, array((CONFIG.vocab_size,), bool), array((1,), jnp.int32))
        with compiler.no_compilation_cache():  # from it no program comes for a TPU that is not here
            compiled = bare_loop.loop.lower(model, answers, draw, count=16).compile()
    text = compiled.as_text()
    for kernel in kernels:
        assert f"/{kernel}" in text, kernel
    store = cache.stacks[1].keys  # of softmax
    assert compiled.memory_analysis().temp_size_in_bytes < math.prod(store.shape) * 2 + 2**20
