"""Plans by shapes, for machines that are not here."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from configs import text_01, text_01_decode_1m, tiny
from mm01_jax import sharding
from mm01_jax.plan import memory, planner, report, roofline, search, targets
from mm01_jax.plan.count import Collective
from mm01_jax.plan.steps import make_step

ROOT = pathlib.Path(__file__).parents[2]
V5P = targets.parse("v5p-1024")


QUICK = ("--target=v5e-8", "--no-compile", "--step=decode", "--mesh=expert=4,tensor=2")


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mm01_jax.plan", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def abstract_step(kind, config, target):
    mesh = planner.abstract_mesh(config, target)
    with jax.sharding.use_abstract_mesh(mesh):
        return make_step(kind, config, mesh)


@pytest.fixture(scope="module")
def plan():
    return planner.make_plan("train", text_01.get_config(), V5P, compile_it=False)


def test_the_released_model_has_456_billion_parameters_and_every_chip_at_least_its_share(plan):
    step = abstract_step("train", plan.config, V5P)
    parameters = jax.tree.leaves(step.parts["parameters"])
    assert sum(math.prod(x.shape) for x in parameters) == 456_089_655_296
    # Weights outside the experts are in parts over data and tensor alone, so that a chip holds more than 1/512 of them.
    assert 456_089_655_296 * 4 // 512 <= plan.arguments["parameters"] < 2 * 456_089_655_296 * 4 // 512


def test_counted_flops_are_the_analytic_ones_with_one_forward_more(plan):
    # Full recomputation: 4 passes for 3. The rest is masked blocks, the router, and logits made twice.
    assert 4 / 3 <= plan.counts.flops * V5P.chips / plan.model_flops < 1.05 * 4 / 3


def test_exchange_is_stated_over_expert_alone(plan):
    assert {one.axes for one in plan.messages if one.kind == "all-to-all"} == {("expert",)}


def test_plan_that_does_not_fit_names_its_largest_terms():
    found = planner.make_plan("decode", text_01_decode_1m.get_config(), targets.parse("v6e-16"), compile_it=False)
    assert not found.fits
    assert "DOES NOT FIT: the largest terms are parameters" in report.text(found)


def test_cache_of_a_million_tokens_has_the_bytes_of_the_paper():
    # Ten softmax layers of 8 heads of 128, keys and values in bfloat16; seventy states of 64 heads, 128 x 128 float32.
    config = text_01_decode_1m.get_config()
    held = memory.per_chip(abstract_step("decode", config, targets.parse("v5p-32")))
    keys_values = 10 * 2 * 8 * 128 * 2 * 2**20 // 8
    states = 70 * 64 * 128 * 128 * 4 // 8
    assert held["cache"] == keys_values + states + 4


def test_search_puts_meshes_that_fit_first_and_keeps_to_valid_ones():
    config, target = tiny.get_config(), targets.parse("v5e-8")
    found = search.search("train", config, target)
    assert found and all(one.bytes <= target.chip.hbm for one in found)
    for one in found:
        assert math.prod(getattr(one.config.mesh, axis) for axis in sharding.AXES) == 8
        assert config.model.num_experts % one.config.mesh.expert == 0
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)


def test_message_between_hosts_takes_the_network_and_inside_one_the_links():
    gpus, mesh = targets.parse("h100-64"), {"data": 2, "expert": 8, "tensor": 4, "sequence": 1}
    inside = roofline.seconds(Collective("all-gather", ("tensor",), 450_000_000), gpus, mesh)
    across = roofline.seconds(Collective("all-gather", ("data",), 50_000_000), gpus, mesh)
    assert inside == pytest.approx(0.75e-3)
    assert across == pytest.approx(0.5e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target=v5p-1000"], "nearest: v5p-1024"),
        (["--target=v5e-8", "--step=trian"], "nearest: train"),
        (["--target=v5e-8", "--mesh=datta=8"], "nearest: data=8"),
        (["--target=v5e-8", "--mesh=data=3"], "the devices of this run, not 3"),
        (["--target=v5e-4", "--mesh=sequence=4", "--step=decode"], "nearest: 1"),
        ([], "--target=v5p-1024"),
    ],
    ids=["target", "step", "axis", "product", "sequence", "none"],
)
def test_wrong_command_is_refused_before_anything_is_planned(arguments, said):
    done = command("--config=configs/tiny.py", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_command_plans_by_shapes_and_writes_its_numbers(tmp_path):
    file = tmp_path / "plan.json"
    done = command("--config=configs/tiny.py", *QUICK, f"--json={file}")
    assert done.returncode == 0, done.stderr
    assert "FITS" in done.stdout
    numbers = json.loads(file.read_text())
    assert numbers["fits"] and numbers["chips"] == 8 and numbers["peak"] < numbers["hbm"]
