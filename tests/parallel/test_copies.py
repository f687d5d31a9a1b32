"""`compute.collectives="copies"`: collectives of permutes say what lax's say, and a step has no others of weights.

What a model computes with them: the meshes with copies of test_meshes.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from configs import tiny
from mm01_jax.config import ConfigError, MeshConfig, Rules
from mm01_jax.config.rules import check
from mm01_jax.parallel import collectives
from mm01_jax.parallel.overlap import compiler_options
from tests.parallel import hlo
from tests.parallel.test_collectives import VARIANT, lowered_gradient

MESSAGES = {
    "gather": lambda x: collectives.all_gather(x, "data", tiled=True),
    "stack": lambda x: collectives.all_gather(x, "data", axis=1),
    "sum": lambda x: collectives.psum_scatter(x, "data", 1),
    "exchange": lambda x: collectives.all_to_all(x, "data"),
}


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("message", MESSAGES)
def test_copies_say_what_laxs_collectives_say_gradients_too(message, shards):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:shards]), ("data",))
    x_RD = jnp.asarray(np.random.default_rng(0).normal(size=(shards * shards, 8)), "float32")

    def differentiated(how):
        """A loss that weighs each shard's copy and each place in it differently, so that none may be exchanged."""

        def sent(x):
            got = MESSAGES[message](x)
            place = jnp.arange(got.size, dtype=jnp.float32).reshape(got.shape)
            return jnp.sin(got * (1.0 + place / got.size + lax.axis_index("data").astype(jnp.float32))).reshape(1, -1)

        run = jax.shard_map(sent, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))

        def loss(x):
            out = run(x)
            return jnp.sum(out), out

        with collectives.made(how):
            return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(x_RD)

    ours, laxs = differentiated("copies"), differentiated("auto")
    assert "collective_permute" in ours.as_text() and "collective_permute" not in laxs.as_text()
    for one, other in zip(*(jax.tree.leaves(program.compile()(x_RD)) for program in (ours, laxs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_step_by_copies_gathers_and_sums_weights_by_permutes_alone():
    mesh = MeshConfig(data=2, sequence=2, rules=Rules(embed=("data", "sequence")))
    with collectives.made("copies"):
        lowered = lowered_gradient(mesh, VARIANT.replace(collectives="copies"))
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": "0"}).as_text()
    shape = {"data": 2, "expert": 1, "tensor": 1, "sequence": 2}
    found = hlo.collectives(compiled, shape)
    permutes = {axes for kind, axes in found if kind == "collective-permute"}
    assert {("data", "sequence"), ("sequence",)} <= permutes  # weights; states and keys
    # Left are sums of numbers, statistics and norms' gradients, and gathers of documents' ends, which are no floats.
    assert {kind for kind, _ in found} <= {"collective-permute", "all-reduce", "all-gather"}
    assert max(map(np.prod, hlo.summed(compiled, shape))) <= VARIANT.config.embed_dim


def test_the_copy_engines_are_asked_for_on_gpus_alone():
    plain, copied = (compiler_options("cuda", how) for how in ("auto", "copies"))
    assert copied == plain | {"xla_gpu_collective_permute_mode": "COLLECTIVES_PEER_MEMORY"}
    assert compiler_options("tpu", "copies") == compiler_options("tpu")


def test_sums_in_float32_of_what_is_sent_in_bfloat16_are_not_promised():
    compute = dataclasses.replace(tiny.get_config().compute, collectives="copies", reduce_dtype="float32")
    with pytest.raises(ConfigError, match="compute.reduce_dtype.*got 'float32'"):
        check(dataclasses.replace(tiny.get_config(), compute=compute))
