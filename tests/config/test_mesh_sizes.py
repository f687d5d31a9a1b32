"""A mesh as a flag has it: what is read, what is written, and what is said to one that is none."""

import pytest

from mm01_jax.config import ConfigError, MeshConfig, Rules, mesh_sizes


def problem(text: str, **options):
    with pytest.raises(ConfigError) as refused:
        mesh_sizes.parse(text, **options)
    (found,) = refused.value.problems
    return found


@pytest.mark.parametrize(
    ("text", "mesh"),
    [
        ("data=2,tensor=4", MeshConfig(data=2, tensor=4)),
        ("sequence=2", MeshConfig(sequence=2)),
        ("data=1", MeshConfig()),
        ("data=2,expert=3,tensor=4,sequence=5", MeshConfig(data=2, expert=3, tensor=4, sequence=5)),
    ],
)
def test_a_word_is_a_mesh_and_a_mesh_is_a_word(text, mesh):
    assert mesh_sizes.parse(text) == mesh
    assert mesh_sizes.as_text(mesh) == text


def test_the_rules_are_those_of_the_base():
    rules = Rules(kv_heads=())
    assert mesh_sizes.parse("tensor=4", MeshConfig(data=8, rules=rules)) == MeshConfig(tensor=4, rules=rules)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("datta=2", "data=2"),
        ("tensr=4", "tensor=4"),
        ("seqence=8", "sequence=8"),
        ("data=0", "data=2"),
        ("data=-1", "data=2"),
        ("data", "data=2"),
        ("", "data=2"),
        ("data=2,,tensor=2", "data=2"),
        ("data=99999999999999999999", "data=2"),
        ("atuo", "auto"),
    ],
)
def test_a_part_that_is_none_is_refused_with_the_nearest(text, nearest):
    found = problem(text, auto=True)
    assert found.nearest == nearest
    assert "AXIS=SIZE, of the axes data, expert, tensor, sequence; or auto" in found.allowed


def test_an_axis_twice_is_refused_and_the_key_is_the_one_that_was_typed():
    found = problem("data=4,data=2", key="mesh")
    assert (found.key, found.allowed, found.nearest) == ("mesh", "every axis once", "one data")


@pytest.mark.parametrize(
    ("mesh", "devices", "processes", "allowed"),
    [
        (MeshConfig(data=3, tensor=4), 8, 1, "at most the 8 devices here, not 12"),
        (MeshConfig(data=2), 8, 2, "all 8 devices of the 2 processes, not 2"),
        (MeshConfig(data=2), 1, 1, "at most the 1 device here, not 2"),
    ],
)
def test_a_product_that_is_not_the_devices_is_said_with_both_numbers(mesh, devices, processes, allowed):
    (found,) = mesh_sizes.device_problems(mesh, devices, processes)
    assert found.allowed == allowed
    assert found.nearest == f"auto, or data={devices}"


def test_one_process_may_use_some_of_its_devices():
    assert not mesh_sizes.device_problems(MeshConfig(data=2), 8)
    assert not mesh_sizes.device_problems(MeshConfig(data=8), 8, 4)
