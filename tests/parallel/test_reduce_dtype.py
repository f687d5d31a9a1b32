"""`compute.reduce_dtype`: gradients of weights cross the devices in that type, and are no farther from float64 for it.

The type is read from the program as the partitioner leaves it: a CPU has no sums of bfloat16, and makes them of float32
whose result is rounded.
"""

import jax
import pytest
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.model.decoder import TextModel
from mm01_jax.plan.compiler import no_compilation_cache
from tests.parallel import hlo, reduced
from tests.parallel.mesh_model import exact
from tests.parallel.test_collectives import VARIANT, lowered_gradient
from tests.parallel.test_meshes import EPS, errors, errors_of_one_device
from tests.slow import slow_but

MESH = MeshConfig(data=2, expert=2, sequence=2)


def in_use(mesh: MeshConfig) -> set[tuple[int, ...]]:
    """The shape of every weight of a layer as one device uses it, its dims in rising order."""
    devices = sharding.make_mesh(mesh, jax.devices()[:8])
    model = jax.eval_shape(lambda: TextModel(*VARIANT, mesh.rules, rngs=nnx.Rngs(params=0)))
    found = set()
    for weight in jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        axes = weight.get_metadata()["axes"]
        shape = sharding.named(devices, sharding.gathered(mesh.rules), *axes).shard_shape(weight.shape)
        found.add(tuple(sorted(shape[sum(axis in ("period", "layer") for axis in axes) :])))
    return found


@pytest.mark.parametrize(("reduce_dtype", "summed"), [("auto", "bf16"), ("float32", "f32")])
def test_gradients_of_weights_are_summed_in_reduce_dtype(reduce_dtype, summed, tmp_path):
    lowered = lowered_gradient(MESH, VARIANT.replace(dtype="bfloat16", reduce_dtype=reduce_dtype))
    options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_pass_re": "spmd.*", "xla_backend_optimization_level": "0"}
    with no_compilation_cache():  # what is found there is not written out
        lowered.compile(compiler_options=options)
    (text,) = (file.read_text() for file in tmp_path.glob("*after_spmd-partitioning*"))
    found = {(tuple(sorted(shape)), dtype) for dtype, shape in hlo.sums(text)}
    assert {(shape, dtype) for shape, dtype in found if shape in in_use(MESH)} == {(s, summed) for s in in_use(MESH)}


ERRORS = {"data 2": MeshConfig(data=2), "data 4, expert 2": MeshConfig(data=4, expert=2)}


@pytest.mark.parametrize("case", slow_but(["data 2"], ERRORS))
def test_sums_in_float32_are_no_farther_from_float64(case):
    narrow, wide = (reduced.found(ERRORS[case], name) for name in reduced.VARIANTS)
    assert reduced.apart(wide, exact()) <= reduced.apart(narrow, exact())
    alone = errors_of_one_device(reduced.VARIANTS["bfloat16"])["gradients"]
    for found in (narrow, wide):
        assert errors(found, exact())["gradients"] <= 2 * alone + EPS
