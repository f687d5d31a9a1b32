"""As many problems as mistakes: what one mistake breaks everywhere is told once, and what it hides is told too."""

import ast

import pytest

from mm01_jax.config import Problem
from mm01_jax.config.causes import named_once
from mm01_jax.config.mesh import sharding_problems
from tests.config import wrong_base, wrong_together
from tests.config.wrong_configs import typed

FAMILIES = wrong_together.families()


def test_the_families_are_not_empty_and_all_their_members_are_wrong():
    assert sum(map(len, FAMILIES.values())) > 450
    assert all(len(wrongs) >= 9 and all(map(wrong_together.refused, wrongs)) for wrongs in FAMILIES.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_problems_are_as_many_as_mistakes(family):
    wanted = wrong_together.mistakes(family)
    odd = [wrong.title for wrong in FAMILIES[family] if wrong_together.problems(wrong) != wanted]
    assert not odd


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("a ")])
def test_the_nearest_of_each_problem_makes_the_config_right(family):
    for wrong in FAMILIES[family]:
        told = wrong_together.refuse(wrong).error.problems
        mended = " ".join([wrong.title, *map(_nearest, told)])
        assert not wrong_together.refused(typed(mended)), mended


def _nearest(problem: Problem) -> str:
    value = ast.literal_eval(problem.nearest.split(" or ")[0])
    return f"{problem.key}={value}".replace(" ", "")


def test_an_axis_is_named_with_every_dim_that_it_does_not_divide():
    (problem,) = wrong_together.refuse(typed("mesh.tensor=3")).error.problems
    dims = ("num_heads=4", "num_kv_heads=2", "expert_dim=256", "vocab_size=320", "embed_dim=128")
    assert (problem.key, problem.got, problem.nearest) == ("mesh.tensor", 3, "2")
    assert problem.allowed == "a divisor of " + ", ".join(f"model.{dim}" for dim in dims)


def test_a_dim_that_the_mended_axis_does_not_divide_is_named_beside_it():
    axis, dim = wrong_together.refuse(typed("mesh.tensor=3 model.vocab_size=321")).error.problems
    assert (axis.key, axis.nearest, dim.key, dim.got) == ("mesh.tensor", "2", "model.vocab_size", 321)


def test_dims_that_no_size_of_an_axis_divides_are_named_each():
    wrong = typed("mesh.tensor=2 model.num_heads=5 model.num_kv_heads=5 model.expert_dim=253 model.vocab_size=321")
    assert wrong_together.problems(wrong) == 4


def test_a_key_that_could_not_be_read_is_judged_no_further():
    for unread in ("model.num_heads=many", "model.num_head=3"):
        told = wrong_together.refuse(typed(f"{unread} mesh.rules.kv_heads=() mesh.rules.ffn=() mesh.rules.vocab=()"))
        assert told.error.problems[0].key == unread.partition("=")[0] and len(told.error.problems) == 1


def test_a_right_config_has_no_problem():
    assert named_once(wrong_base.get_config(), sharding_problems) == []
