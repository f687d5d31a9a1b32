"""Plans by shapes, for machines that are not here."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from configs import text_01, text_01_decode_1m, tiny
from mm01_jax.config import MESH_AXES
from mm01_jax.plan import compiler, memory, planner, report, roofline, search, targets
from mm01_jax.plan.steps import make_step
from mm01_jax.plan.traced_work import Collective

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
        assert math.prod(getattr(one.config.mesh, axis) for axis in MESH_AXES) == 8
        assert config.model.num_experts % one.config.mesh.expert == 0
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)


def test_search_proposes_only_meshes_whose_data_axis_spans_the_slices():
    found = search.search("train", tiny.get_config(), targets.parse("v5e-4x2"))
    assert {one.config.mesh.data for one in found} == {2, 4}


def test_message_between_hosts_takes_the_network_and_inside_one_the_links():
    gpus, mesh = targets.parse("h100-64"), {"data": 2, "expert": 8, "tensor": 4, "sequence": 1}
    inside = roofline.seconds(Collective("all-gather", ("tensor",), 450_000_000), gpus, mesh)
    across = roofline.seconds(Collective("all-gather", ("data",), 50_000_000), gpus, mesh)
    assert inside == pytest.approx(0.75e-3)
    assert across == pytest.approx(0.5e-3)


def test_messages_beside_work_take_no_time_of_their_own_until_they_are_the_longest():
    gpus, mesh = targets.parse("h100-64"), {"data": 2, "expert": 8, "tensor": 4, "sequence": 1}
    one = Collective("all-gather", ("tensor",), 450_000_000)  # 0.75 ms
    flops, bytes_moved = 1e-3 * gpus.chip.flops, 0.5e-3 * gpus.chip.hbm_speed

    def shown(count: int, beside: int) -> float:
        return roofline.times(gpus, mesh, flops, bytes_moved, {one: count}, overlapped={one: beside}).shown

    assert shown(2, 0) == pytest.approx(2.5e-3)
    assert shown(2, 1) == pytest.approx(1.75e-3)
    assert shown(2, 2) == pytest.approx(1.5e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target=v5p-1000"], "nearest: v5p-1024"),
        (["--target=v5e-8", "--step=trian"], "nearest: train"),
        (["--target=v5e-8", "--mesh=datta=8"], "nearest: data=8"),
        (["--target=v5e-8", "--mesh=data=3"], "allowed: a product of 8, the chips of v5e-8; nearest: --mesh=data=4,"),
        (["--target=v5e-8", "--mesh=data=4,data=2"], "nearest: one data"),
        (["--target=v5e-8", "--mesh=tensor=8"], "mesh.tensor: got 8; allowed: a divisor of model.num_heads=4"),
        (["--target=v5e-4", "--mesh=sequence=4", "--step=decode"], "nearest: 1"),
        (["--target=v5e-4x2", "--mesh=expert=4,tensor=2"], "mesh.data: got 1; allowed: a multiple of the 2 slices"),
        (["--target=v5p:0x8x8"], "--target"),
        (["--target=v5e-8", "--json=no/such/plan.json"], "--json: got 'no/such/plan.json'"),
        (["--target=v5e-8", "--png=plan.jpeg"], "nearest: plan.png"),
        (["--target=v5e-8", "--no-compile", "--hlo=plan.txt"], "nearest: the same without --no-compile"),
        (["--target=v5e-8", "--search", "--json=plan.json"], "--search makes none"),
        ([], "--target=v5p-1024"),
    ],
    ids=[
        "target",
        "step",
        "axis",
        "product",
        "axis twice",
        "heads",
        "sequence",
        "slices",
        "empty torus",
        "folder",
        "picture",
        "no program",
        "no plan",
        "none",
    ],
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
    assert numbers["experts"] == "dropless, buffers for the worst case"


def test_chart_of_a_plan_is_a_picture(tmp_path, plan):
    pytest.importorskip("matplotlib")
    report.save_chart(plan, str(tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_gpu_has_to_hold_all_temporaries_and_a_tpu_its_peak(plan):
    GIB = targets.GIB
    memory = {"arguments": 20 * GIB, "temporaries": 70 * GIB, "outputs": 0, "donated": 0, "peak": 60 * GIB}
    compiled = compiler.Compiled(None, "", memory, {}, 0)
    found = dataclasses.replace(plan, compiled=compiled)
    assert found.fits and report.text(found).splitlines()[-1] == "FITS"
    found = dataclasses.replace(found, target=targets.parse("h100-512"))
    assert found.peak < found.target.chip.hbm and not found.fits
    said = report.text(found)
    assert "60.00 of 79.11" in said and "90.00" in said and "DOES NOT FIT" in said


def test_compiler_that_refuses_is_quoted(plan):
    refused = compiler.Compiled("Used 111.77G of 95.73G hbm", "", {}, {}, 0)
    found = dataclasses.replace(plan, compiled=refused)
    assert not found.fits
    assert "Used 111.77G of 95.73G hbm" in report.text(found)
    assert "layer inputs (estimate)" in report.text(found).splitlines()[-1]
