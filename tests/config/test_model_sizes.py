"""What a model may need beside its weights, which a config of a few hundred kilobytes of them can make gigabytes."""

import dataclasses

import pytest

from configs import vl_01
from mm01_jax.config import VisionConfig, fields, model_sizes, rules
from tests.config import wrong_base

NARROW = {"model.embed_dim": 2, "model.expert_dim": 2, "model.num_kv_heads": 1, "model.rotary_dim": 2}
TOWER = VisionConfig(embed_dim=64, num_layers=1, num_heads=64, mlp_dim=2, image_size=62, patch_size=1, image_token=3)


def narrow(**changes):
    config = wrong_base.get_config()
    for key, value in (NARROW | {key.replace("__", "."): value for key, value in changes.items()}).items():
        config = fields.replace(config, key, value)
    return config


@pytest.mark.parametrize(
    ("key", "changes", "most"),
    [
        ("model.head_dim", {"model__head_dim": 16_384, "model__num_heads": 1}, 1024),
        ("model.num_heads", {"model__num_heads": 8192, "model__head_dim": 2}, 1024),
        ("model.num_kv_heads", {"model__num_kv_heads": 8192, "model__head_dim": 2, "model__num_heads": 8192}, 1024),
        ("model.num_experts", {"model__num_experts": 100_000}, 10_000),
        ("model.num_experts_per_token", {"model__num_experts": 40_000, "model__num_experts_per_token": 40_000}, 2),
        ("vision.num_heads", {"vision": TOWER}, 2),
    ],
)
def test_what_needs_much_beside_little_weights_is_refused_by_the_field_that_makes_it(key, changes, most):
    found = [problem.key for problem in rules.problems(narrow(**changes))]
    assert key in found and all(name.startswith(("model.num_", "model.head_dim", "vision.num_heads")) for name in found)
    section = "vision" if key.startswith("vision") else ""
    changes = {"vision": dataclasses.replace(TOWER, num_heads=most, image_size=31)} if section else changes
    fitting = narrow(**changes) if section else fields.replace(narrow(**changes), key, most)
    assert key not in [problem.key for problem in rules.problems(fitting)]


def test_what_the_released_model_needs_is_a_thousandth_of_its_weights():
    config = vl_01.get_config()
    weights = model_sizes._weights(config.model)
    assert 456.0e9 < weights < 456.2e9
    assert max(needed for _, needed in model_sizes._needed(config).values()) < weights / 1000
    half = dataclasses.replace(config.model, num_heads=4096, num_kv_heads=4096)  # 64 times the heads
    assert not [*model_sizes.beside_weights(dataclasses.replace(config, model=half))]


def test_groups_of_an_exchange_are_as_many_as_a_layer_s_program_may_hold_one_after_another():
    for groups, keys in ((8, []), (9, ["compute.exchange_groups"]), (10**6, ["compute.exchange_groups"])):
        config = fields.replace(wrong_base.get_config(), "compute.exchange_groups", groups)
        assert [problem.key for problem in rules.problems(config)] == keys
