"""A config as JSON comes back exactly, and nothing but a complete, valid config is accepted."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import pytest

from configs import vl_01
from mm01_jax import values
from mm01_jax.config import ConfigError, Problem, command_line, fields, saved
from mm01_jax.config.causes import named_once
from tests import small
from tests.config import wrong_base

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in ROOT.glob("configs/[a-z]*.py"))
GOLDEN = ROOT / "tests/golden/configs"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_through_json_is_equal_and_its_text_too(name):
    config = command_line.load_config(f"{ROOT}/configs/{name}.py")
    text = saved.to_json(config)
    back = saved.from_json(text)
    assert back == config
    assert saved.to_json(back) == text
    assert hash(back) == hash(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_the_golden_text(name):
    text = saved.to_json(command_line.load_config(f"{ROOT}/configs/{name}.py"))
    refresh = f"python train_main.py --config=configs/{name}.py --dry_run > tests/golden/configs/{name}.json"
    assert text == (GOLDEN / f"{name}.json").read_text(), f"configs/{name}.py changed; when that is meant: {refresh}"


def test_every_golden_text_has_its_config():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == CONFIGS


def test_whole_number_in_a_field_of_numbers_gives_the_same_text():
    config = wrong_base.get_config()
    whole = fields.replace(config, "optimizer.clip_norm", 1)
    assert saved.to_json(whole) == saved.to_json(config)
    assert saved.from_json(saved.to_json(whole)) == whole


def test_saved_json_is_a_config_file_too(tmp_path):
    config = command_line.load_config(f"{ROOT}/configs/tiny.py", ["train.steps=7"])
    (tmp_path / "config.json").write_text(saved.to_json(config))
    assert command_line.load_config(str(tmp_path / "config.json")) == config
    longer = command_line.load_config(str(tmp_path / "config.json"), ["train.steps=9"])
    assert longer == fields.replace(config, "train.steps", 9)


def _refusal(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        saved.from_json(text)
    return str(refused.value)


def _edited(*path: str, value: object) -> str:
    config = vl_01 if path[0] == "vision" else wrong_base
    section = plain = json.loads(saved.to_json(config.get_config()))
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return json.dumps(plain)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"name": NaN}', "[" * 100_000, '{"name": 1' + "0" * 9999]
)
def test_text_that_is_no_config_is_refused(text):
    assert "allowed" in _refusal(text)


def test_config_that_0_1_wrote_is_refused_by_one_problem_that_says_what_moved():
    text = (ROOT / "tests/fixtures/config_0_1.json").read_text()
    with pytest.raises(ConfigError) as refused:
        saved.from_json(text)
    (problem,) = refused.value.problems
    assert "mm01_jax 0.1" in problem.got and "config of 0.2" in problem.allowed
    plain = json.loads(text)
    moved, gone = (part.split(", ") for part in problem.allowed.partition("compute has ")[2].split(", and "))
    plain["compute"] = {name: plain["model"].pop(name) for name in moved}
    for name in " ".join(gone).removesuffix(" are gone").split():
        assert not plain["mesh"]["rules"].pop(name.removeprefix("mesh.rules."))
    golden = (GOLDEN / "tiny.json").read_text()
    assert saved.from_json(json.dumps(plain)) == saved.from_json(golden)


def test_config_that_0_2_0_wrote_means_the_defaults_of_what_came_since():
    plain = json.loads((GOLDEN / "tiny.json").read_text())
    for name in ("tensorboard", "profile"):
        del plain["train"][name]
    assert saved.from_json(json.dumps(plain)) == saved.from_json((GOLDEN / "tiny.json").read_text())


def test_train_main_refuses_a_config_that_0_1_wrote_with_exit_code_2():
    command = [sys.executable, "train_main.py", "--config=tests/fixtures/config_0_1.json", "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert sum("mm01_jax 0.1" in line for line in done.stderr.splitlines()) == 1 == len(done.stderr.splitlines())


def test_repeated_key_is_refused_by_name():
    text = saved.to_json(wrong_base.get_config()).replace('"steps": 100,', '"steps": 100, "steps": 200,')
    assert "steps: got [100, 200]; allowed: each key once" in _refusal(text)


def test_unknown_and_missing_keys_are_all_named_and_a_mistyped_one_is_not_missing_as_well():
    plain = json.loads(saved.to_json(wrong_base.get_config()))
    plain["train"]["stpes"] = plain["train"].pop("steps")
    plain["model"]["heads"] = 4
    del plain["data"]["seed"]
    message = _refusal(json.dumps(plain))
    assert "train.stpes: got 100" in message and "nearest: train.steps" in message
    assert "model.heads: got 4" in message
    assert "data.seed: got 'nothing'" in message and "nearest: data.seed = ..." in message
    assert message.startswith("refused for 3 problems")


@pytest.mark.parametrize("values", [{"steps": -1}, {"steps": -1, "batch_size": 0}])
def test_a_refusal_names_the_file_that_is_wrong(tmp_path, values):
    plain = json.loads(saved.to_json(wrong_base.get_config()))
    plain["train"] |= values
    file = tmp_path / "saved.json"
    file.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=f"{file}") as refused:
        command_line.load_config(str(file))
    assert str(refused.value).count(str(file)) == 1 and len(refused.value.problems) == len(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("train", "steps"), "100"),
        (("train", "steps"), True),
        (("train", "steps"), 1.0),
        (("model", "period"), "softmax"),
        (("model", "period"), ["softmax", 3]),
        (("train", "batch_ramp"), [[20, 16, 3]]),
        (("train", "batch_ramp"), [[20]]),
        (("model",), None),
        (("optimizer", "clip_norm"), "1"),
        (("train", "steps"), -1),
        (("vision", "norm_eps"), 0.0),
        (("vision", "embed_dim"), []),
    ],
)
def test_saved_value_of_another_type_or_out_of_range_is_refused_by_key(path, value):
    assert f"{'.'.join(path)}: got " in _refusal(_edited(*path, value=value))


def test_equal_configs_give_equal_text_and_another_value_another_text():
    config = wrong_base.get_config()
    assert saved.to_json(dataclasses.replace(config)) == saved.to_json(config)
    assert saved.to_json(dataclasses.replace(config, name="other")) != saved.to_json(config)


def test_a_list_of_very_many_is_refused_before_each_of_it_is_looked_at():
    plain = json.loads(saved.to_json(small.config()))
    plain["train"]["batch_ramp"] = [[step, 2] for step in range(1, 200_000)]
    text, began = json.dumps(plain), time.process_time()
    with pytest.raises(ConfigError, match="train.batch_ramp: got .*199,999.*; allowed: a list of at most 10,000"):
        saved.from_json(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(("section", "name"), [("data", "tokenizer"), ("data", "source"), ("model", "routing")])
def test_a_text_of_very_many_characters_is_refused_by_key_before_it_is_compared(section, name):
    plain = json.loads(saved.to_json(small.config()))
    plain[section][name] = "a" * 2_000_000
    text = json.dumps(plain)
    with pytest.raises(ConfigError, match=f"{section}.{name}: got 'text of 2,000,000 characters'; .* at most 4,096"):
        saved.from_json(text)


def test_what_is_too_long_for_a_name_is_like_no_name(monkeypatch):
    monkeypatch.setattr(values.difflib, "get_close_matches", None)  # it would note every letter
    assert values.similar("a" * 5000, ["aa"]) == [] and fields.nearest_name("a" * 5000, ["aa"]) is None


def test_what_is_wrong_with_long_lists_is_judged_once_and_not_for_every_change(monkeypatch):
    judged = []
    config = fields.replace(small.config(), "train.batch_ramp", tuple((step, 3) for step in range(1, 2000)))
    problems = [Problem(key="model.embed_dim", got=8, allowed=text, nearest="16") for text in ("even", "large")]
    assert named_once(config, lambda other: judged.append(other) or problems) == problems
    assert len(judged) == 1
