"""The VL model on any mesh that the text model runs on: tiles lie with their rows, dealt over the sequence's shards.

The bound is that of `test_meshes.py`: twice as far from float64 on one device as one device is, in the farthest of
eight orders of its sums.
"""

import functools
import math

import jax
import pytest

from mm01_jax import sharding
from mm01_jax.config import MeshConfig, Rules, VisionConfig
from mm01_jax.model.abstract import abstract_model
from tests import small
from tests.parallel.mesh_model import VARIANT, evaluate, exact
from tests.parallel.test_meshes import COPIES, EPS, GROUPS, KV_EVERYWHERE, ZIGZAG_CAPACITY, ZIGZAG_RING, errors, plain
from tests.slow import slow_but

VISION = VisionConfig(embed_dim=16, num_layers=2, num_heads=4, mlp_dim=32, image_size=8, patch_size=4, image_token=47)
WIDTH_OVER_TENSOR = Rules(act_embed=("tensor",))  # as text_01 has it
CASES = {
    "data 2, tensor 2, sequence 2, zigzag ring": (MeshConfig(data=2, tensor=2, sequence=2), ZIGZAG_RING),
    # ---
    "data 2, expert 2, tensor 2, two groups": (MeshConfig(data=2, expert=2, tensor=2), GROUPS),
    "data 2, expert 2, sequence 2, copies": (MeshConfig(data=2, expert=2, sequence=2), COPIES),
    "data 8": (MeshConfig(data=8), VARIANT),
    "expert 8": (MeshConfig(expert=8), VARIANT),
    "data 2, tensor 4": (MeshConfig(data=2, tensor=4, rules=KV_EVERYWHERE), VARIANT),
    "data 2, sequence 4": (MeshConfig(data=2, sequence=4), VARIANT),
    "expert 2, sequence 4, zigzag, capacity": (MeshConfig(expert=2, sequence=4), ZIGZAG_CAPACITY),
    "data 4, tensor 2, width over tensor": (MeshConfig(data=4, tensor=2, rules=WIDTH_OVER_TENSOR), VARIANT),
    "expert 2, tensor 2, sequence 2": (MeshConfig(expert=2, tensor=2, sequence=2), VARIANT),
}


@functools.cache
def errors_of_one_device(variant):
    orders = [errors(evaluate(MeshConfig(), variant, order, VISION), exact(variant, VISION)) for order in range(8)]
    return {kind: max(found[kind] for found in orders) for kind in orders[0]}


@pytest.mark.parametrize("case", slow_but(list(CASES)[:1], CASES))
def test_vl_model_on_a_mesh_is_as_near_to_float64_as_on_one_device(case):
    mesh, variant = CASES[case]
    reference = plain(variant)
    true, found = exact(reference, VISION), evaluate(mesh, variant, vision=VISION)
    assert found.gradients.keys() == true.gradients.keys()
    assert sum(path.startswith(("vision/", "projector/")) for path in found.gradients) == 25
    alone = errors_of_one_device(reference)
    far = {kind: (error, alone[kind]) for kind, error in errors(found, true).items() if error > 2 * alone[kind] + EPS}
    assert not far


def test_matrices_of_vision_are_cut_over_data_and_tensor():
    rules = Rules(kv_heads=())
    config = small.replace(small.config(), vision=VISION, mesh=MeshConfig(data=2, tensor=2, rules=rules))
    model = abstract_model(config, sharding.make_mesh(config.mesh, jax.devices()[:4]))
    blocks, projector = model.vision.blocks, model.projector
    matrices = (blocks.query, blocks.key, blocks.value, blocks.out, blocks.up, blocks.down)
    for weight in (*matrices, projector.first, projector.second):
        shard = weight.get_value().sharding.shard_shape(weight.shape)
        assert math.prod(weight.shape) == 4 * math.prod(shard)
