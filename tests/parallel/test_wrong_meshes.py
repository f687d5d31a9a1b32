"""A mesh that the model cannot run on is refused from the config alone, with the nearest that it can."""

import dataclasses

import numpy as np
import pytest

from configs import tiny
from mm01_jax import sharding
from mm01_jax.config import ConfigError, Rules, fields
from mm01_jax.config.mesh import mesh_problems, nearest_meshes
from mm01_jax.config.rules import check

# tiny: 8 rows of 256 tokens, width 128, 4 heads, 2 key heads, 4 experts of width 256, 320 words
WRONG = {
    "heads not divisible": ({"mesh.tensor": 3}, "mesh.tensor", "2"),
    "key heads not divisible": ({"mesh.tensor": 4}, "model.num_kv_heads", "mesh.tensor=2"),
    "sequence not divisible": ({"mesh.sequence": 3}, "train.sequence_length", "129 or mesh.sequence=2"),
    "stripes not divisible": (
        {"mesh.sequence": 4, "train.sequence_length": 132, "compute.sequence_layout": "zigzag"},
        "train.sequence_length",
        "128 or compute.sequence_layout='contiguous'",
    ),
    "experts not divisible": ({"mesh.expert": 8}, "mesh.expert", "4"),
    "rows not divisible": ({"mesh.data": 3, "mesh.rules.embed": ()}, "train.batch_size", "3"),
    "width of results not divisible": (
        {"model.embed_dim": 129, "mesh.rules.ffn": ("tensor",), "mesh.tensor": 2},
        "model.embed_dim",
        "128",
    ),
    "axis unknown": ({"mesh.rules.seq": ("sequenc",)}, "mesh.rules.seq", "('sequence',)"),
    "axis twice": ({"mesh.rules.seq": ("tensor",)}, "mesh.rules.seq", "()"),
    "experts over an axis that cuts no tokens": (
        {"mesh.rules.batch": ("data",), "mesh.expert": 2},
        "mesh.rules.expert",
        "()",
    ),
    "key heads and shards that do not meet": (
        {"mesh.rules.kv_heads": (), "mesh.tensor": 4, "model.num_heads": 12, "model.num_kv_heads": 3},
        "model.num_kv_heads",
        "2",
    ),
}


def changed(**values):
    config = tiny.get_config()
    for key, value in values.items():
        config = fields.replace(config, key, value)
    return config


@pytest.mark.parametrize("case", WRONG)
def test_wrong_mesh_is_refused_with_its_key_and_the_nearest(case):
    values, key, nearest = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        check(changed(**values))
    found = {problem.key: problem for problem in caught.value.problems}
    assert key in found, str(caught.value)
    assert nearest in found[key].nearest, str(caught.value)


def test_product_that_is_not_the_devices_is_refused_with_meshes_that_are():
    config = changed(**{"mesh.data": 2, "mesh.tensor": 2})
    (problem,) = mesh_problems(config, 8)
    assert "data=2 * expert=1 * tensor=2 * sequence=1" in problem.got
    assert "8" in problem.allowed
    assert problem.nearest.count("--config.mesh.") >= 2
    for mesh in nearest_meshes(config, 8):
        assert not mesh_problems(check(fields.replace(config, "mesh", mesh)), 8)


def test_key_heads_held_by_every_shard_are_allowed_where_they_meet():
    rules = Rules(kv_heads=())
    for tensor in (2, 4):
        check(changed(**{"mesh.rules": rules, "mesh.tensor": tensor}))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax asks a TPU about its place."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    core_on_chip: int = 0
    process_index: int = 0


def chips(slices: int, shape: tuple[int, int, int]) -> list[Chip]:
    places = list(np.ndindex(*shape))
    return [Chip(s * len(places) + i, s, place) for s in range(slices) for i, place in enumerate(places)]


def test_data_alone_spans_slices():
    ordered = sharding._tpu_order((4, 2, 2, 1), chips(2, (2, 2, 2)))
    slices = np.vectorize(lambda chip: chip.slice_index)(ordered)
    np.testing.assert_array_equal(slices, np.broadcast_to(slices[:, :1, :1, :1], slices.shape))
    assert sorted(slices[:, 0, 0, 0]) == [0, 0, 1, 1]
    assert len({chip.id for chip in ordered.flat}) == 16


def test_data_that_slices_do_not_divide_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match="mesh.data=1 must be a multiple of the 2 slices.*nearest: --config.mesh.data=2"
    ):
        sharding._tpu_order((1, 4, 4, 1), chips(2, (2, 2, 2)))
