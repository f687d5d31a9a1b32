"""Rules of a config beyond the table of wrong ones: right configs pass, overrides read by type, resumes, meshes."""

import dataclasses
import math

import pytest

from mm01_jax.checkpoint import MOST_LEAVES
from mm01_jax.config import ConfigError, MeshConfig, Rules, VisionConfig, command_line, fields, resume, rules
from mm01_jax.config.mesh import mesh_problems, nearest_meshes
from tests.config import wrong_base, wrong_configs

BASE = str(wrong_configs.ROOT / wrong_configs.BASE)
VISION = VisionConfig(embed_dim=32, num_layers=2, num_heads=2, mlp_dim=64, image_size=28, patch_size=14)


def _with(**changes: object):
    config = wrong_base.get_config()
    for key, value in changes.items():
        config = fields.replace(config, key.replace("__", "."), value)
    return config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=1_000", 1000),
        ("train.batch_ramp=[[5, 16], [6, 24]]", ((5, 16), (6, 24))),
        ("train.batch_ramp=()", ()),
        ('model.period=["softmax"]', ("softmax",)),
        ("optimizer.clip_norm=None", None),
        ("optimizer.clip_norm=2", 2.0),
        ("optimizer.weight_decay=1e-2", 0.01),
        ("data.source=texts/*.jsonl", "texts/*.jsonl"),
        ("data.source=a=b.txt", "a=b.txt"),
        ("mesh.rules.seq=[]", ()),
        ("compute.dtype=float32", "float32"),
    ],
)
def test_override_is_read_by_the_type_of_its_field(override, value):
    found = fields.get(command_line.load_config(BASE, [override]), override.partition("=")[0])
    assert found == value
    assert type(found) is type(value)


def test_a_folder_that_exists_is_a_source_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="data.source: got 'tokens'"):
        command_line.load_config(BASE, ["data.source=tokens"])
    (tmp_path / "tokens").mkdir()
    assert command_line.load_config(BASE, ["data.source=tokens"]).data.source == "tokens"


def test_last_of_two_overrides_of_one_field_wins():
    assert command_line.load_config(BASE, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"model__period": ("lightning",)},
        {"model__period": ("softmax",) * 5, "model__num_periods": 1},
        {"model__num_heads": 3, "model__num_kv_heads": 1, "model__num_experts_per_token": 4},
        {"model__experts_beta": 0.0, "model__routing": "capacity"},
        {"mesh": MeshConfig(data=2, expert=2, tensor=2, sequence=2)},
        {"mesh": MeshConfig(data=4, rules=Rules(batch=("data",), embed=()))},
        {"optimizer__schedule__step_down_at": None, "optimizer__schedule__stepped": None},
        {"train__num_microbatches": 8},
        {"data__tokenizer": "tokens/tokenizer.json", "model__vocab_size": 64},
    ],
)
def test_ablations_the_model_allows_are_valid(changes):
    config = _with(**changes)
    assert rules.check(config) is config


def test_every_number_is_refused_as_nan_and_negative():
    for key, kind in fields.leaf_types().items():
        for wrong in (math.nan, math.inf, -1, -1.0) if fields.fits(1, kind) else ():
            found = rules.problems(_with(**{key: wrong}))
            assert [problem.key for problem in found] == [key], (key, wrong)


def test_problems_of_all_sections_come_together():
    config = _with(model__rotary_dim=7, train__steps="9", data__held_out=2.0, mesh__tensor=0)
    with pytest.raises(ConfigError) as refused:
        rules.check(config)
    keys = {problem.key for problem in refused.value.problems}
    assert keys == {"model.rotary_dim", "train.steps", "data.held_out", "mesh.tensor"}


def test_layers_in_no_order_that_are_more_stretches_than_a_program_may_have_are_refused():
    for stretches, keys in ((rules.MOST_STACKS, []), (rules.MOST_STACKS + 1, ["model.period"])):
        period = tuple(("lightning", "softmax")[at % 2] for at in range(stretches))
        assert [problem.key for problem in rules.problems(_with(model__period=period))] == keys
    of_one = 10 * 3  # ten weights, and two moments of each
    assert rules.MOST_STACKS * of_one + of_one <= MOST_LEAVES


@pytest.mark.parametrize(("layers", "periods", "key"), [(2, 2**31 - 1, "num_periods"), (20_000, 1, "period")])
def test_of_too_many_layers_the_field_that_makes_them_is_named(layers, periods, key):
    (found,) = rules.problems(_with(model__period=("lightning",) * layers, model__num_periods=periods))
    assert found.key == f"model.{key}"


def test_section_of_another_type_is_refused_and_judged_no_further():
    found = rules.problems(dataclasses.replace(wrong_base.get_config(), model=None))
    assert [problem.key for problem in found] == ["model"]


def test_nearest_meshes_are_valid_have_the_devices_and_begin_with_the_most_alike():
    config = _with(mesh__data=2, mesh__tensor=2)
    meshes = nearest_meshes(config, 8, most=99)
    assert {m.data * m.expert * m.tensor * m.sequence for m in meshes} == {8}
    assert (meshes[0].data, meshes[0].expert, meshes[0].tensor, meshes[0].sequence) == (4, 1, 2, 1)
    for mesh in meshes:
        rules.check(dataclasses.replace(config, mesh=mesh))


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8, 16])
def test_mesh_with_the_devices_has_no_problem_and_any_other_names_a_mesh_that_has(num_devices):
    assert not mesh_problems(_with(mesh__sequence=num_devices), num_devices)
    (problem,) = mesh_problems(_with(mesh__sequence=32), num_devices)
    overrides = problem.nearest.split(" or ")[0].replace("--config.", "").split(" ")
    near = command_line.load_config(BASE, ["mesh.sequence=32", *overrides])
    assert not mesh_problems(near, num_devices)


@pytest.mark.parametrize(
    ("typed", "nearest"), [("10", "1:2"), ("30:20", "30:31"), ("0:3", "1:2"), ("90:200", "90:91"), ("a:b", "1:2")]
)
def test_steps_to_profile_lie_in_the_run(typed, nearest):
    with pytest.raises(ConfigError) as refused:
        command_line.load_config(BASE, [f"train.profile={typed}"])
    (problem,) = refused.value.problems
    assert (problem.key, problem.got, problem.nearest) == ("train.profile", typed, nearest)
    assert command_line.load_config(BASE, [f"train.profile={nearest}"]).train.profile_steps


MAY_CHANGE = {
    "train.steps",
    "train.eval_every",
    "train.eval_batches",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.profile",
    "train.tensorboard",
    "data.prefetch",
    "data.source",  # a place, whose content the data's own manifest proves
}


@pytest.mark.parametrize("key", fields.leaf_types())
def test_resumed_run_may_change_compute_mesh_lengths_intervals_and_the_place_of_its_data_and_nothing_else(key):
    saved = wrong_base.get_config()
    refused = [p.key for p in resume.resume_problems(saved, _with(**{key: _other(saved, key)}))]
    section = key.partition(".")[0]
    allowed = section in ("compute", "mesh") or key in MAY_CHANGE
    # What is saved has the dtype of the weights.
    assert refused == ([] if allowed and key != "compute.param_dtype" else [key])


@pytest.mark.parametrize("key", fields.leaf_types())
def test_weights_are_taken_by_a_config_of_the_same_model_whatever_else_differs(key):
    saved = wrong_base.get_config()
    value = _other(saved, key)
    problems = resume.model_problems(saved, _with(**{key: value}), "runs/base")
    told = [(problem.key, problem.got, problem.nearest) for problem in problems]
    assert told == ([(key, value, repr(fields.get(saved, key)))] if key.startswith("model.") else [])
    assert all("runs/base" in problem.allowed for problem in problems)


def _other(config, key: str) -> object:
    """Another value of the type that is there."""
    value, kind = fields.get(config, key), fields.leaf_types()[key]
    return next(
        v for v in ("other", ("other",), ((1, 2),), 5, 0.5, VISION, False) if v != value and _like(v, value, kind)
    )


def _like(candidate: object, value: object, kind: object) -> bool:
    return type(candidate) is type(value) or (value is None and fields.fits(candidate, kind))


def test_differences_name_key_old_and_new():
    assert fields.differences(_with(), _with(train__steps=7, mesh__data=2)) == [
        ("mesh.data", 1, 2),
        ("train.steps", 100, 7),
    ]


def test_config_file_that_fails_is_told_with_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    x = 1\n    return undefined_name\n")
    with pytest.raises(ConfigError, match=r"mine\.py, line 3: got \"NameError"):
        command_line.load_config(str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text("def get_config(:\n")
    with pytest.raises(ConfigError, match="SyntaxError"):
        command_line.load_config(str(tmp_path / "mine.py"))


def test_one_expert_a_token_is_refused_in_training_but_where_the_text_is_frozen():
    config = _with(model__num_experts_per_token=1)
    assert [problem.key for problem in rules.training_problems(config)] == ["model.num_experts_per_token"]
    assert not [*rules.training_problems(fields.replace(config, "optimizer.frozen", ("text",)))]
