"""The released VL model as a config: its parameters, and what a plan of its steps counts. By shapes alone."""

import dataclasses
import math

import jax
import pytest

from configs import text_01, vl_01, vl_01_stage1
from mm01_jax.config import MeshConfig
from mm01_jax.convert.torch.released import config_json
from mm01_jax.convert.torch.settings import DIALECTS
from mm01_jax.model import flops
from mm01_jax.plan import planner, targets
from mm01_jax.plan.steps import make_step, tiles_of_row

V5P, V5P_32 = targets.parse("v5p-1024"), targets.parse("v5p-32")


def weights(model) -> int:
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(model))


@pytest.fixture(scope="module")
def plan():
    return planner.make_plan("train", vl_01.get_config(), V5P, compile_it=False)


def test_vl_01_has_the_released_number_of_parameters_and_the_released_settings():
    config = vl_01.get_config()
    mesh = planner.abstract_mesh(config, V5P)
    with jax.sharding.use_abstract_mesh(mesh):
        model = make_step("train", config, mesh).parts["parameters"]
    assert weights(model) == 456_437_219_328
    assert weights(model.vision) == 303_505_408 and weights(model.projector) == 44_052_480
    plain = config_json(config, DIALECTS["vl-01"], "bfloat16", {})
    assert plain["image_token_index"] == 200_025 and plain["image_seq_length"] == 576
    assert plain["image_grid_pinpoints"][:7] == [[336, 336 * n] for n in range(1, 7)] + [[672, 336]]
    assert len(plain["image_grid_pinpoints"]) == 28 and plain["image_grid_pinpoints"][-1] == [2016, 1008]


def test_training_is_planned_with_images_in_a_quarter_of_the_tokens(plan):
    assert plan.fits and tiles_of_row(plan.config) == 4  # of 600 tokens each, of 8,192
    text = planner.make_plan("train", text_01.get_config(), V5P, compile_it=False)
    assert plan.arguments["parameters"] > text.arguments["parameters"]
    vision, model = plan.config.vision, plan.config.model
    of_a_tile = flops.tower_flops_per_tile(vision) + flops.projector_flops_per_tile(vision, model)
    tiles = plan.config.train.batch_size * tiles_of_row(plan.config)
    assert plan.model_flops - text.model_flops == pytest.approx(3 * tiles * of_a_tile)
    # A block's forward is done again for its gradient, but for its last product, which no gradient asks for; the
    # projector's is not.
    more = (plan.counts.flops - text.counts.flops) * V5P.chips
    assert 1.1 < more / (3 * tiles * of_a_tile) < 4 / 3


def test_alignment_holds_no_moment_of_the_text_model_to_the_byte():
    config = vl_01_stage1.get_config()
    mesh = planner.abstract_mesh(config, V5P)
    with jax.sharding.use_abstract_mesh(mesh):
        state = make_step("train", config, mesh).parts["optimizer"]
    moments = 2 * 4 * (303_505_408 + 44_052_480 + 6_144)  # tower, projector, newline
    counters = 3 * 4  # steps: of the state, of Adam, of the schedule
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) == moments + counters


def test_a_tower_s_flops_are_those_of_its_weights_and_of_patches_that_see_each_other():
    vision = vl_01.get_config().vision
    matrices = 24 * (4 * 1024**2 + 2 * 1024 * 4096)
    scores = 24 * 2 * 577**2 * 1024
    assert flops.tower_flops_per_tile(vision) == 2 * (577 * matrices + scores + 576 * 588 * 1024)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_serving_is_planned_with_the_tower_s_weights(kind):
    config = vl_01.get_config()
    train = dataclasses.replace(config.train, batch_size=16)
    config = dataclasses.replace(config, mesh=MeshConfig(expert=2, tensor=8), train=train)
    plan = planner.make_plan(kind, config, V5P_32, compile_it=False)
    assert plan.fits and plan.arguments["parameters"] * V5P_32.chips >= 2 * 456_437_219_328
